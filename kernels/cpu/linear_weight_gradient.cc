// SPDX-License-Identifier: Apache-2.0
// dW += dy^T x: tiles of 14 output features by 32 input features continue the chains that dW holds,
// over chunks of tokens small enough that both converted factors stay in cache.
#include "kernels/cpu/linear.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_weight_gradient.cc"
#include "hwy/foreach_target.h"  // must come before highway.h

#include <algorithm>

#include "kernels/cpu/dispatch_float.h"
#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/workspace.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

inline constexpr int64_t kChunkTokens = 192;
inline constexpr int64_t kParallelMultiplyAdds = 400 * 1000;

// One rectangle of dweight: output features [out_begin, out_end), input features [in_begin,
// in_end).
struct Rectangle {
  int64_t out_begin, out_end, in_begin, in_end;
};

template <class T>
class WeightGradient {
 public:
  WeightGradient(ConstTensor dy, ConstTensor x, Tensor dweight, Tensor dbias)
      : dy_(dy.as<T>()),
        x_(x.as<T>()),
        dweight_(dweight.as<float>()),
        dbias_(dbias.as<float>()),
        tokens_(x.dim(0)),
        out_(dy.dim(1)),
        in_(x.dim(1)) {}

  void Run(const ExecContext& ctx) const {
    const int64_t threads = Threads(ctx);
    const bool parallel = threads > 1 && tokens_ * out_ * in_ >= kParallelMultiplyAdds;
    // The longer side is divided, so that the factor every task converts again is the short one.
    const bool split_out = out_ >= in_;
    const int64_t unit = split_out ? kTileRows : kPanelColumns;
    const int64_t units = ((split_out ? out_ : in_) + unit - 1) / unit;
    const int64_t tasks = parallel ? std::min(units, 2 * threads) : 1;
    const int64_t side = (units + tasks - 1) / tasks * unit;

    Workspace::Scope scope(ctx.workspace);
    const int64_t chunk = std::min(tokens_, kChunkTokens);
    const int64_t left_rows = split_out ? std::min(side, out_) : out_;
    const int64_t left_floats = ((left_rows + kTileRows - 1) / kTileRows + 1) * chunk * kPackedRows;
    const int64_t right_floats = chunk * kPanelColumns;
    const int64_t lanes = tasks == 1 ? 1 : threads;
    float* const left = scope.Array<float>(left_floats * lanes);
    float* const right = scope.Array<float>(right_floats * lanes);
    float* const edge = scope.Array<float>(kTileRows * kPanelColumns * lanes);
    ParallelFor(ctx, tasks, [&](int64_t task, int thread) {
      const int64_t begin = units * task / tasks * unit;
      const int64_t end = units * (task + 1) / tasks * unit;
      const Rectangle part = split_out
                                 ? Rectangle{std::min(begin, out_), std::min(end, out_), 0, in_}
                                 : Rectangle{0, out_, std::min(begin, in_), std::min(end, in_)};
      Accumulate(part, left + thread * left_floats, right + thread * right_floats,
                 edge + thread * kTileRows * kPanelColumns);
    });
  }

 private:
  void Accumulate(const Rectangle& part, float* left, float* right, float* edge) const {
    const int64_t rows = part.out_end - part.out_begin;
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    for (int64_t token = 0; token < tokens_; token += kChunkTokens) {
      const int64_t steps = std::min(kChunkTokens, tokens_ - token);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        PackLeft(token, steps, part.out_begin + rows * tile / tiles,
                 part.out_begin + rows * (tile + 1) / tiles, left + tile * steps * kPackedRows);
      }
      if (part.in_begin == 0) AccumulateBias(token, steps, part);
      for (int64_t in = part.in_begin; in < part.in_end; in += kPanelColumns) {
        const int64_t columns = std::min(kPanelColumns, part.in_end - in);
        ConvertRight(token, steps, in, columns, right);
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t begin = part.out_begin + rows * tile / tiles;
          const int64_t end = part.out_begin + rows * (tile + 1) / tiles;
          TileArgs<float> args{};
          args.a = left + tile * steps * kPackedRows;
          args.b = right;
          args.b_step = kPanelColumns;
          args.steps = steps;
          args.c = dweight_ + begin * in_ + in;
          args.c_row = in_;
          args.continued = true;
          args.next = args.c;
          if (tile + 1 < tiles) {
            PrefetchChains(end, part.out_begin + rows * (tile + 2) / tiles, in);
          } else {
            PrefetchChains(part.out_begin, part.out_begin + rows / tiles, in + kPanelColumns);
          }
          RunTile(args, end - begin, columns, edge);
        }
      }
    }
  }

  // [steps, 16] FP32 copies of dy[token.., begin..end).
  void PackLeft(int64_t token, int64_t steps, int64_t begin, int64_t end, float* to) const {
    const T* from = dy_ + token * out_ + begin;
    const auto count = static_cast<size_t>(out_ - begin >= 16 ? 16 : end - begin);
    for (int64_t k = 0; k < steps; ++k, from += out_, to += kPackedRows) {
      Store16(Load16(from, count), to);
    }
  }

  // [steps, 32] FP32 copies of x[token.., in..), zero beyond `columns`.
  void ConvertRight(int64_t token, int64_t steps, int64_t in, int64_t columns, float* to) const {
    const T* from = x_ + token * in_ + in;
    const auto low = static_cast<size_t>(columns);
    const size_t high = low > 16 ? low - 16 : 0;
    for (int64_t k = 0; k < steps; ++k, from += in_, to += kPanelColumns) {
      Store16(Load16(from, low), to);
      Store16(high == 0 ? Zero16() : Load16(from + 16, high), to + 16);
    }
  }

  // Brings chains that come next into the cache while a tile computes.
  void PrefetchChains(int64_t begin, int64_t end, int64_t in) const {
    if (in >= in_) return;
    for (int64_t o = begin; o < end; ++o) {
      const float* const row = dweight_ + o * in_ + in;
      __builtin_prefetch(row, 1, 3);
      __builtin_prefetch(row + 16, 1, 3);
    }
  }

  void RunTile(TileArgs<float> args, int64_t rows, int64_t columns, float* edge) const {
    if (columns == kPanelColumns) {
      for (int64_t column = 0; column < kPanelColumns; column += kTileColumns) {
        TileArgs<float> part = args;
        part.b += column;
        part.c += column;
        kTiles<2, 1, true, float>[rows - 1](part);
      }
      return;
    }
    // The last columns go through a full-width copy of the chains.
    float* const c = args.c;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < columns; ++j) edge[r * kPanelColumns + j] = c[r * args.c_row + j];
      for (int64_t j = columns; j < kPanelColumns; ++j) edge[r * kPanelColumns + j] = 0.0f;
    }
    for (int64_t column = 0; column < columns; column += kTileColumns) {
      TileArgs<float> part = args;
      part.b += column;
      part.c = edge + column;
      part.c_row = kPanelColumns;
      kTiles<2, 1, true, float>[rows - 1](part);
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < columns; ++j) c[r * args.c_row + j] = edge[r * kPanelColumns + j];
    }
  }

  void AccumulateBias(int64_t token, int64_t steps, const Rectangle& part) const {
    if (dbias_ == nullptr) return;
    for (int64_t o = part.out_begin; o < part.out_end; o += 16) {
      const auto count = static_cast<size_t>(std::min<int64_t>(16, part.out_end - o));
      F32x16 sum = Load16(dbias_ + o, count);
      const T* from = dy_ + token * out_ + o;
      for (int64_t k = 0; k < steps; ++k, from += out_) sum = sum + Load16(from, count);
      Store16(sum, dbias_ + o, count);
    }
  }

  const T* dy_;
  const T* x_;
  float* dweight_;
  float* dbias_;
  int64_t tokens_;
  int64_t out_;
  int64_t in_;
};

void LinearBackwardWeightImpl(const ExecContext& ctx, ConstTensor dy, ConstTensor x, Tensor dweight,
                              Tensor dbias) {
  DispatchFloat(x.dtype(), [&]<class T>() { WeightGradient<T>(dy, x, dweight, dbias).Run(ctx); });
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
