// SPDX-License-Identifier: Apache-2.0
// y = x W^T and dx = dy W, in two ways: few rows read the packed weight once, in one stream; many
// rows take it in blocks that stay in cache. The left factor is always converted to FP32 first, the
// right one where a conversion must serve many multiply-adds to be cheap.
#include "kernels/cpu/linear.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear.cc"
#include "hwy/foreach_target.h"  // must come before highway.h

#include <algorithm>
#include <type_traits>

#include "kernels/cpu/factors-inl.h"
#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/dispatch_float.h"
#include "kernels/dispatch_or_float.h"
#include "kernels/workspace.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

// Bytes of a panel, as the tiles read it, that stay in the L1 cache beside the rows of a tile.
inline constexpr int64_t kBlockBytes = 24 * 1024;
// Whether tiles convert a packed right factor themselves, each time that they read it. It costs the
// narrow tiles of AVX2 nothing; tiles of AVX-512 have no instruction to spare.
inline constexpr bool kTilesConvert = HWY_MAX_BYTES != 64;
// Rows and panels of a block, for which converted rows and unfinished chains stay in the L2 cache.
inline constexpr int64_t kBlockRows = 252;
inline constexpr int64_t kBlockPanels = 16;
// FP32 elements of whole rows that stay in the L2 cache.
inline constexpr int64_t kWholeRowElements = 256 * 1024;
// Work below which a second thread costs more than it brings, in multiply-adds and in weight bytes.
inline constexpr int64_t kParallelMultiplyAdds = 400 * 1000;
inline constexpr int64_t kParallelBytes = 192 * 1024;

template <class T>
bool WorthThreads(const ExecContext& ctx, int64_t rows, int64_t weights) {
  return Threads(ctx) > 1 && (rows * weights >= kParallelMultiplyAdds ||
                              weights * static_cast<int64_t>(sizeof(T)) >= kParallelBytes);
}

// Rows that the fast profile takes in tiles of two halves.
inline constexpr int kMaxSplitRows =
    kMaxSplitTileRows<static_cast<int>(kPanelAlignment / kTileLanes)>;

constexpr int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// At most kGemmTileRows rows: one tile high, the right factor converted in registers.
template <class A, class T, class Y>
class FewRows {
 public:
  FewRows(const A* left, int64_t rows, const PackedRight<T>& right, const Output<Y, T>& out)
      : left_(left), rows_(rows), right_(right), out_(out) {}

  void Run(const ExecContext& ctx) const {
    const int64_t inner = right_.inner;
    const int64_t units = CeilDivide(CeilDivide(right_.columns, kPanelColumns), kUnitPanels);
    const int64_t tasks = WorthThreads<T>(ctx, rows_, inner * right_.columns)
                              ? std::min<int64_t>(units, 4 * Threads(ctx))
                              : 1;
    Workspace::Scope scope(ctx.workspace);
    const int64_t stride = CeilDivide(inner, 16) * 16 + 16;
    float* const left = scope.Array<float>(static_cast<size_t>(rows_ * stride));
    ConvertRows(left_, inner, 0, rows_, 0, inner, left, stride);
    ParallelFor(ctx, tasks, [&](int64_t task, int) {
      const int64_t panels = CeilDivide(right_.columns, kPanelColumns);
      int64_t panel = units * task / tasks * kUnitPanels;
      const int64_t last = std::min(panels, units * (task + 1) / tasks * kUnitPanels);
      size_t saturated = 0;
      if (ctx.profile == Profile::kFast && rows_ <= kMaxSplitRows) {
        RunSplitTiles(left, stride, panel, last, &saturated);
        CountSaturated(ctx, static_cast<int64_t>(saturated));
        return;
      }
      // The fewer rows, the more panels at once: chains in flight and streams to read.
      if constexpr (kTileColumns == kPanelColumns) {
        if (rows_ <= kMaxGemmTileRows<2, 4>) {
          panel = RunPanels<2, 4>(left, stride, panel, last, &saturated);
        } else if (rows_ <= kMaxGemmTileRows<2, 2>) {
          panel = RunPanels<2, 2>(left, stride, panel, last, &saturated);
        }
        panel = RunPanels<2, 1>(left, stride, panel, last, &saturated);
        RunPanels<1, 1>(left, stride, panel, last, &saturated);
      } else {
        if (rows_ <= kMaxGemmTileRows<4, 1>) {
          panel = RunPanels<4, 1>(left, stride, panel, last, &saturated);
        }
        RunHalfPanels(left, stride, panel, last, &saturated);
      }
      CountSaturated(ctx, static_cast<int64_t>(saturated));
    });
  }

 private:
  static constexpr int64_t kUnitPanels = 4;

  TileArgs<T> Args(const float* left, int64_t stride, int64_t panel) const {
    TileArgs<T> args{};
    args.a = left;
    args.a_row = stride;
    args.b = right_.At(panel, 0);
    args.b_step = PanelWidth(right_.columns, panel);
    args.b_panel = kPanelColumns * right_.inner;
    args.steps = right_.inner;
    return args;
  }

  // Takes kPanels panels of kVecs registers at a time as long as such are left; returns the next
  // panel.
  template <int kVecs, int kPanels>
  int64_t RunPanels(const float* left, int64_t stride, int64_t panel, int64_t last,
                    size_t* saturated) const {
    constexpr int64_t kWidth = kVecs * kTileLanes;
    float chains[kMaxGemmTileRows<kVecs, kPanels> * kPanels * kWidth];
    const TileFunction<T> tile = TileFor<kVecs, kPanels, TileSource::kStream, T>(rows_);
    for (; panel + kPanels <= last; panel += kPanels) {
      if (PanelWidth(right_.columns, panel + kPanels - 1) != kWidth) break;
      TileArgs<T> args = Args(left, stride, panel);
      args.c = chains;
      args.c_row = kPanels * kWidth;
      tile(args);
      for (int64_t p = 0; p < kPanels; ++p) {
        *saturated += out_.Store(0, rows_, panel + p, chains + p * kWidth, kPanels * kWidth);
      }
    }
    return panel;
  }

  // Each panel whole, or where that leaves no registers its 16 columns at a time, in tiles whose
  // steps are in two halves.
  void RunSplitTiles(const float* left, int64_t stride, int64_t panel, int64_t last,
                     size_t* saturated) const {
    constexpr int kWholeVecs = static_cast<int>(kPanelColumns / kTileLanes);
    constexpr int kPartVecs = static_cast<int>(kPanelAlignment / kTileLanes);
    float chains[kMaxSplitRows * kPanelColumns];
    for (; panel < last; ++panel) {
      TileArgs<T> args = Args(left, stride, panel);
      args.c = chains;
      args.c_row = kPanelColumns;
      if (args.b_step == kPanelColumns && rows_ <= kMaxSplitTileRows<kWholeVecs>) {
        SplitTileFor<kWholeVecs, T>(rows_)(args);
      } else {
        for (int64_t column = 0; column < args.b_step; column += kPanelAlignment) {
          args.b = right_.At(panel, 0) + column;
          args.c = chains + column;
          SplitTileFor<kPartVecs, T>(rows_)(args);
        }
      }
      *saturated += out_.Store(0, rows_, panel, chains, kPanelColumns);
    }
  }

  // Panels wider than a tile.
  void RunHalfPanels(const float* left, int64_t stride, int64_t panel, int64_t last,
                     size_t* saturated) const {
    float chains[kGemmTileRows * kPanelColumns];
    const TileFunction<T> tile = TileFor<2, 1, TileSource::kStream, T>(rows_);
    for (; panel < last; ++panel) {
      TileArgs<T> args = Args(left, stride, panel);
      args.c_row = kPanelColumns;
      for (int64_t column = 0; column < args.b_step; column += kTileColumns) {
        args.b = right_.At(panel, 0) + column;
        args.c = chains + column;
        tile(args);
      }
      *saturated += out_.Store(0, rows_, panel, chains, kPanelColumns);
    }
  }

  const A* left_;
  int64_t rows_;
  PackedRight<T> right_;
  Output<Y, T> out_;
};

// Blocks of rows by groups of panels. Rows that are short enough are converted whole, and one panel
// is finished after the other; else blocks of steps are outermost, and the chains of a group of
// panels wait in memory for the next block. The plain weight is always read the second way: there a
// panel is a column, and neighbouring panels share its pages.
template <class A, class Right, class Y>
class ManyRows {
 public:
  using T = typename Right::Element;

  ManyRows(const A* left, int64_t rows, const Right& right, const Output<Y, T>& out)
      : left_(left),
        rows_(rows),
        right_(right),
        out_(out),
        panels_(CeilDivide(right.columns, kPanelColumns)),
        step_blocks_(std::max<int64_t>(1, CeilDivide(right.inner, kMaxBlockSteps))),
        block_steps_(CeilDivide(CeilDivide(right.inner, step_blocks_), 16) * 16),
        whole_rows_(Right::kPacked && right.inner * kBlockRows / 2 <= kWholeRowElements),
        // An odd number of cache lines, so that the rows of a tile do not share a cache set.
        left_stride_((whole_rows_ ? step_blocks_ * block_steps_ : block_steps_) / 32 * 32 + 48) {}

  void Run(const ExecContext& ctx) {
    Plan(ctx);
    Workspace::Scope scope(ctx.workspace);
    const int64_t tasks = row_blocks_ * groups_;
    const int threads = tasks == 1 ? 1 : Threads(ctx);
    const int64_t block_rows = CeilDivide(rows_, row_blocks_);
    const int64_t left_floats = block_rows * left_stride_;
    const int64_t panel_floats = kInPlace ? 0 : kMaxBlockSteps * kPanelColumns;
    const int64_t chain_panels = whole_rows_ ? 1 : CeilDivide(panels_, groups_);
    const int64_t chain_floats =
        std::max<int64_t>(block_rows, kGemmTileRows) * chain_panels * kPanelColumns;
    const int64_t floats = left_floats + panel_floats + chain_floats;
    float* const scratch = scope.Array<float>(static_cast<size_t>(floats * threads));
    ParallelFor(ctx, tasks, [&](int64_t task, int thread) {
      const int64_t block = task / groups_, group = task % groups_;
      float* const own = scratch + thread * floats;
      const Task part{rows_ * block / row_blocks_,
                      rows_ * (block + 1) / row_blocks_,
                      panels_ * group / groups_,
                      panels_ * (group + 1) / groups_,
                      own,
                      own + left_floats,
                      own + left_floats + panel_floats};
      CountSaturated(ctx, static_cast<int64_t>(RunTask(part)));
    });
  }

 private:
  // What the tiles read: the right factor itself, or FP32 copies.
  static constexpr bool kInPlace = Right::kPacked && (kTilesConvert || sizeof(T) == 4);
  using TileElement = std::conditional_t<kInPlace, T, float>;
  static constexpr int64_t kMaxBlockSteps =
      kBlockBytes / (kPanelColumns * static_cast<int64_t>(sizeof(TileElement)));

  // What one call computes, and its scratch.
  struct Task {
    int64_t row, end_row;
    int64_t panel, end_panel;
    float* left;    // [rows, left_stride_], one block of steps or all
    float* right;   // [steps, 32], one panel of a block, if converted
    float* chains;  // [panels, rows, 32] unfinished sums, or one tile if nothing stays unfinished
  };

  // How many blocks of rows and groups of panels.
  void Plan(const ExecContext& ctx) {
    const int64_t threads = Threads(ctx);
    const int64_t fit = kWholeRowElements / std::max<int64_t>(right_.inner, 1);
    row_blocks_ = CeilDivide(rows_, whole_rows_ ? std::min(kBlockRows, fit) : kBlockRows);
    groups_ = whole_rows_ ? 1 : CeilDivide(panels_, kBlockPanels);
    if (!WorthThreads<T>(ctx, rows_, right_.inner * right_.columns)) return;
    if (row_blocks_ * groups_ >= 4 * threads) return;
    if (row_blocks_ >= threads) {
      row_blocks_ = CeilDivide(row_blocks_, threads) * threads;
    } else if (panels_ >= 8 * threads) {
      groups_ = std::max(groups_, std::min(panels_ / 4, 4 * threads));
    } else if (rows_ >= 2 * threads * kGemmTileRows) {
      row_blocks_ = threads;
    } else {
      groups_ = std::min(panels_, threads);
    }
  }

  size_t RunTask(const Task& task) const {
    size_t saturated = 0;
    if (whole_rows_) {
      Convert(task, 0, right_.inner);
      for (int64_t panel = task.panel; panel < task.end_panel; ++panel) {
        for (int64_t block = 0; block < step_blocks_; ++block) {
          saturated += RunPanel(task, panel, block, task.chains);
        }
      }
      return saturated;
    }
    const int64_t chain_floats = (task.end_row - task.row) * kPanelColumns;
    for (int64_t block = 0; block < step_blocks_; ++block) {
      Convert(task, BlockBegin(block), BlockBegin(block + 1));
      for (int64_t panel = task.panel; panel < task.end_panel; ++panel) {
        saturated +=
            RunPanel(task, panel, block, task.chains + (panel - task.panel) * chain_floats);
      }
    }
    return saturated;
  }

  // Multiples of 16, so that no block but the last needs a partial vector.
  int64_t BlockBegin(int64_t block) const { return std::min(right_.inner, block * block_steps_); }

  void Convert(const Task& task, int64_t begin, int64_t end) const {
    ConvertRows(left_, right_.inner, task.row, task.end_row - task.row, begin, end, task.left,
                left_stride_);
  }

  // Where the right factor is read after one block of one panel.
  const T* Next(const Task& task, int64_t panel, int64_t block) const {
    const bool last_panel = panel + 1 == task.end_panel;
    if (whole_rows_) {
      return block + 1 < step_blocks_ ? right_.At(panel, BlockBegin(block + 1))
                                      : right_.At(last_panel ? panel : panel + 1, 0);
    }
    return last_panel ? right_.At(task.panel, BlockBegin(block + 1))
                      : right_.At(panel + 1, BlockBegin(block));
  }

  // One block of steps of one panel, for all rows of the task.
  size_t RunPanel(const Task& task, int64_t panel, int64_t block, float* strip) const {
    const int64_t begin = BlockBegin(block), steps = BlockBegin(block + 1) - begin;
    const int64_t width = PanelWidth(right_.columns, panel);
    const TileElement* right;
    if constexpr (kInPlace) {
      right = right_.At(panel, begin);
    } else {
      right_.Convert(panel, begin, steps, task.right);
      right = task.right;
    }
    const int64_t rows = task.end_row - task.row;
    const int64_t tiles = CeilDivide(rows, kGemmTileRows);
    const int64_t passes = tiles * CeilDivide(width, kTileColumns);
    // Changed in place from tile to tile: a copy right after its members were written would wait
    // for them to reach the cache.
    TileArgs<TileElement> args{};
    args.a_row = left_stride_;
    args.b_step = width;
    args.steps = steps;
    args.c_row = kPanelColumns;
    args.continued = block != 0;
    args.next = Next(task, panel, block);
    args.next_step = right_.StepBytes();
    args.next_interval = std::max<int64_t>(1, passes / kTurnSteps);
    const int64_t next_bytes = CeilDivide(steps, passes) * right_.StepBytes();
    const float* const left = task.left + (whole_rows_ ? begin : 0);

    size_t saturated = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = rows * tile / tiles, last = rows * (tile + 1) / tiles;
      float* const chains = strip + (step_blocks_ == 1 ? 0 : first * kPanelColumns);
      args.a = left + first * left_stride_;
      for (int64_t column = 0; column < width; column += kTileColumns) {
        args.b = right + column;
        args.c = chains + column;
        FunctionFor(width, last - first)(args);
        args.next = static_cast<const char*>(args.next) + next_bytes;
      }
      if (block + 1 < step_blocks_) continue;
      saturated += out_.Store(task.row + first, last - first, panel, chains, kPanelColumns);
    }
    return saturated;
  }

  static TileFunction<TileElement> FunctionFor(int64_t width, int64_t rows) {
    if constexpr (kPanelAlignment < kTileColumns) {
      if (width < kTileColumns) return TileFor<1, 1, TileSource::kRows, TileElement>(rows);
    }
    return TileFor<2, 1, TileSource::kRows, TileElement>(rows);
  }

  const A* left_;
  int64_t rows_;
  Right right_;
  Output<Y, T> out_;
  int64_t panels_;
  int64_t step_blocks_;
  int64_t block_steps_;
  bool whole_rows_;
  int64_t left_stride_;
  int64_t row_blocks_ = 1;
  int64_t groups_ = 1;
};

template <class A, class T, class Y>
void Forward(const ExecContext& ctx, ConstTensor x, const LinearWeight& weight, Tensor y) {
  const int64_t out = weight.weight.dim(0), in = weight.weight.dim(1);
  const PackedRight<T> right{static_cast<const T*>(weight.packed.data()), in, out};
  const Output<Y, T> output{y.as<Y>(), weight.bias.as<T>(), out, true};
  const int64_t rows = x.dim(0);
  if (rows <= kGemmTileRows) {
    FewRows<A, T, Y>(x.as<A>(), rows, right, output).Run(ctx);
  } else {
    ManyRows<A, PackedRight<T>, Y>(x.as<A>(), rows, right, output).Run(ctx);
  }
}

void LinearImpl(const ExecContext& ctx, ConstTensor x, const LinearWeight& weight, Tensor y) {
  DispatchFloat(weight.weight.dtype(), [&]<class T>() {
    if (y.dtype() != DType::kFloat32) return Forward<T, T, T>(ctx, x, weight, y);
    DispatchOrFloat<T>(x.dtype(), [&]<class A>() { Forward<A, T, float>(ctx, x, weight, y); });
  });
}

template <class A, class T, class Y>
void Backward(const ExecContext& ctx, ConstTensor dy, const LinearWeight& weight, Tensor dx) {
  const int64_t out = weight.weight.dim(0), in = weight.weight.dim(1);
  const Output<Y, T> output{dx.as<Y>(), nullptr, in, false};
  const PlainRight<T> right{weight.weight.as<T>(), out, in};
  ManyRows<A, PlainRight<T>, Y>(dy.as<A>(), dy.dim(0), right, output).Run(ctx);
}

void LinearBackwardInputImpl(const ExecContext& ctx, ConstTensor dy, const LinearWeight& weight,
                             Tensor dx) {
  DispatchFloat(weight.weight.dtype(), [&]<class T>() {
    if (dy.dtype() != DType::kFloat32) return Backward<T, T, T>(ctx, dy, weight, dx);
    DispatchOrFloat<T>(dx.dtype(), [&]<class Y>() { Backward<float, T, Y>(ctx, dy, weight, dx); });
  });
}

}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfstep::cpu {

HWY_EXPORT(LinearImpl);
HWY_EXPORT(LinearBackwardInputImpl);

void Linear(const ExecContext& ctx, ConstTensor x, const LinearWeight& weight, Tensor y) {
  if (y.elements() == 0) return;
  HWY_DYNAMIC_DISPATCH(LinearImpl)(ctx, x, weight, y);
}

void LinearBackwardInput(const ExecContext& ctx, ConstTensor dy, const LinearWeight& weight,
                         Tensor dx) {
  if (dx.elements() == 0) return;
  HWY_DYNAMIC_DISPATCH(LinearBackwardInputImpl)(ctx, dy, weight, dx);
}

}  // namespace halfstep::cpu
#endif  // HWY_ONCE
