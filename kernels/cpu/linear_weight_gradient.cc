// SPDX-License-Identifier: Apache-2.0
// dW += dy^T x: tiles of output by input features continue the chains that dW holds, over chunks of
// tokens small enough that both converted factors stay in cache.
#include "kernels/cpu/linear.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_weight_gradient.cc"
#include "hwy/foreach_target.h"  // must come before highway.h

#include <algorithm>

#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/dispatch_float.h"
#include "kernels/dispatch_or_float.h"
#include "kernels/workspace.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

// Tokens for which a converted panel of x (128 bytes a token) stays in the L1 cache beside a tile's
// dy.
inline constexpr int64_t kChunkTokens = 192;
// Output features whose converted dy stays in the L2 cache.
inline constexpr int64_t kBlockRows = 252;
inline constexpr int64_t kParallelMultiplyAdds = 400 * 1000;

constexpr int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One rectangle of dweight: output features [out_begin, out_end), input features [in_begin,
// in_end).
struct Rectangle {
  int64_t out_begin, out_end, in_begin, in_end;
};

template <class Dy, class X>
class WeightGradient {
 public:
  WeightGradient(ConstTensor dy, ConstTensor x, Tensor dweight, Tensor dbias)
      : dy_(dy.as<Dy>()),
        x_(x.as<X>()),
        dweight_(dweight.as<float>()),
        dbias_(dbias.as<float>()),
        tokens_(x.dim(0)),
        out_(dy.dim(1)),
        in_(x.dim(1)) {}

  void Run(const ExecContext& ctx) const {
    const Grid grid = Divide(ctx);
    const int64_t tasks = grid.out_blocks * grid.in_groups;
    const int64_t threads = tasks == 1 ? 1 : Threads(ctx);
    const int64_t chunk = std::min(tokens_, kChunkTokens);
    const int64_t tiles = CeilDivide(CeilDivide(out_, grid.out_blocks), kGemmTileRows);
    const int64_t left_floats = tiles * chunk * kPackedRows;
    const int64_t right_floats = chunk * kPanelColumns;
    const int64_t floats = left_floats + right_floats + kGemmTileRows * kPanelColumns;
    Workspace::Scope scope(ctx.workspace);
    float* const scratch = scope.Array<float>(static_cast<size_t>(floats * threads));
    ParallelFor(ctx, tasks, [&](int64_t task, int thread) {
      const int64_t block = task / grid.in_groups, group = task % grid.in_groups;
      const int64_t panels = CeilDivide(in_, kPanelColumns);
      const Rectangle part{out_ * block / grid.out_blocks, out_ * (block + 1) / grid.out_blocks,
                           panels * group / grid.in_groups * kPanelColumns,
                           std::min(in_, panels * (group + 1) / grid.in_groups * kPanelColumns)};
      float* const own = scratch + thread * floats;
      Accumulate(part, {own, own + left_floats, own + left_floats + right_floats});
    });
  }

 private:
  // How dweight is cut into tasks.
  struct Grid {
    int64_t out_blocks, in_groups;
  };
  // Of one thread.
  struct Scratch {
    float* left;   // [tiles, steps, kPackedRows]
    float* right;  // [32 / kTileColumns, steps, kTileColumns]
    float* edge;   // [kGemmTileRows, 32]
  };

  Grid Divide(const ExecContext& ctx) const {
    const int64_t threads = Threads(ctx);
    const int64_t panels = CeilDivide(in_, kPanelColumns), tiles = CeilDivide(out_, kGemmTileRows);
    Grid grid{CeilDivide(out_, kBlockRows), 1};
    if (threads == 1 || tokens_ * out_ * in_ < kParallelMultiplyAdds) return grid;
    const int64_t missing = CeilDivide(2 * threads, grid.out_blocks);
    if (missing <= 1) return grid;
    // A task converts its own parts of both factors, so neither may become too narrow.
    if (panels >= 4 * missing) {
      grid.in_groups = missing;
    } else if (tiles >= 3 * threads) {
      grid.out_blocks = std::max(grid.out_blocks, threads);
    } else {
      grid.in_groups = std::min(panels, threads);
    }
    return grid;
  }

  void Accumulate(const Rectangle& part, const Scratch& scratch) const {
    const int64_t rows = part.out_end - part.out_begin;
    const int64_t tiles = CeilDivide(rows, kGemmTileRows);
    const auto row = [&](int64_t tile) { return part.out_begin + rows * tile / tiles; };
    for (int64_t token = 0; token < tokens_; token += kChunkTokens) {
      const int64_t steps = std::min(kChunkTokens, tokens_ - token);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        PackLeft(token, steps, row(tile), row(tile + 1), scratch.left + tile * steps * kPackedRows);
      }
      if (part.in_begin == 0) AccumulateBias(token, steps, part);
      for (int64_t in = part.in_begin; in < part.in_end; in += kPanelColumns) {
        const int64_t columns = std::min(kPanelColumns, part.in_end - in);
        ConvertRight(token, steps, in, columns, scratch.right);
        TileArgs<float> args{};
        args.b_step = kTileColumns;
        args.steps = steps;
        args.continued = true;
        args.next_step = in_ * static_cast<int64_t>(sizeof(float));
        args.next_interval = std::max<int64_t>(1, steps / kTurnSteps / kGemmTileRows);
        for (int64_t tile = 0; tile < tiles; ++tile) {
          PrefetchRight(token + steps * tile / tiles, token + steps * (tile + 1) / tiles,
                        in + kPanelColumns);
          args.a = scratch.left + tile * steps * kPackedRows;
          args.b = scratch.right;
          args.c = dweight_ + row(tile) * in_ + in;
          args.next = tile + 1 < tiles ? dweight_ + row(tile + 1) * in_ + in
                                       : dweight_ + part.out_begin * in_ + in + kPanelColumns;
          RunTile(args, row(tile + 1) - row(tile), columns, scratch.edge);
        }
      }
    }
  }

  // [steps, kPackedRows] FP32 copies of dy[token.., begin..end).
  void PackLeft(int64_t token, int64_t steps, int64_t begin, int64_t end, float* to) const {
    const Dy* from = dy_ + token * out_ + begin;
    const auto count = static_cast<size_t>(out_ - begin >= kPackedRows ? kPackedRows : end - begin);
    for (int64_t k = 0; k < steps; ++k, from += out_, to += kPackedRows) {
      const F32x16 v = Load16(from, count);
      Store16(v, to, static_cast<size_t>(kPackedRows));
    }
  }

  // [32 / kTileColumns, steps, kTileColumns] FP32 copies of x[token.., in..), zero beyond
  // `columns`.
  void ConvertRight(int64_t token, int64_t steps, int64_t in, int64_t columns, float* to) const {
    const X* from = x_ + token * in_ + in;
    const auto low = static_cast<size_t>(columns);
    const size_t high = low > 16 ? low - 16 : 0;
    float* const second = to + (kTileColumns == 16 ? 16 * steps : 16);
    for (int64_t k = 0; k < steps; ++k, from += in_) {
      Store16(Load16(from, low), to + k * kTileColumns);
      Store16(high == 0 ? Zero16() : Load16(from + 16, high), second + k * kTileColumns);
    }
  }

  // Asks for the part of the next panel that these tokens have.
  void PrefetchRight(int64_t begin, int64_t end, int64_t in) const {
    if (in >= in_) return;
    for (int64_t token = begin; token < end; ++token) {
      __builtin_prefetch(x_ + token * in_ + in, 0, 2);
    }
  }

  // Changes args.b and args.c.
  void RunTile(TileArgs<float>& args, int64_t rows, int64_t columns, float* edge) const {
    const TileFunction<float> tile = TileFor<2, 1, TileSource::kPacked, float>(rows);
    const float* const right = args.b;
    float* const c = args.c;
    const auto run = [&](float* chains, int64_t row) {
      args.c_row = row;
      for (int64_t column = 0; column < columns; column += kTileColumns) {
        args.b = right + column * args.steps;
        args.c = chains + column;
        tile(args);
      }
    };
    if (columns == kPanelColumns) return run(c, in_);
    // The last columns go through a full-width copy of the chains.
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < columns; ++j) edge[r * kPanelColumns + j] = c[r * in_ + j];
      for (int64_t j = columns; j < kPanelColumns; ++j) edge[r * kPanelColumns + j] = 0.0f;
    }
    run(edge, kPanelColumns);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < columns; ++j) c[r * in_ + j] = edge[r * kPanelColumns + j];
    }
  }

  void AccumulateBias(int64_t token, int64_t steps, const Rectangle& part) const {
    if (dbias_ == nullptr) return;
    for (int64_t o = part.out_begin; o < part.out_end; o += 16) {
      const auto count = static_cast<size_t>(std::min<int64_t>(16, part.out_end - o));
      F32x16 sum = Load16(dbias_ + o, count);
      const Dy* from = dy_ + token * out_ + o;
      for (int64_t k = 0; k < steps; ++k, from += out_) sum = sum + Load16(from, count);
      Store16(sum, dbias_ + o, count);
    }
  }

  const Dy* dy_;
  const X* x_;
  float* dweight_;
  float* dbias_;
  int64_t tokens_;
  int64_t out_;
  int64_t in_;
};

void LinearBackwardWeightImpl(const ExecContext& ctx, ConstTensor dy, ConstTensor x, Tensor dweight,
                              Tensor dbias) {
  DispatchFloat(x.dtype(), [&]<class X>() {
    DispatchOrFloat<X>(dy.dtype(),
                       [&]<class Dy>() { WeightGradient<Dy, X>(dy, x, dweight, dbias).Run(ctx); });
  });
}

}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfstep::cpu {

HWY_EXPORT(LinearBackwardWeightImpl);

void LinearBackwardWeight(const ExecContext& ctx, ConstTensor dy, ConstTensor x, Tensor dweight,
                          Tensor dbias) {
  if (dy.elements() == 0) return;
  HWY_DYNAMIC_DISPATCH(LinearBackwardWeightImpl)(ctx, dy, x, dweight, dbias);
}

}  // namespace halfstep::cpu
#endif  // HWY_ONCE
