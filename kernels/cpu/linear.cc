// SPDX-License-Identifier: Apache-2.0
// y = x W^T and dx = dy W: rows of the left factor are converted to FP32 once, panels of the right
// one once per block of rows (or in registers where the rows fit one tile), and tiles run over
// both.
#include "kernels/cpu/linear.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear.cc"
#include "hwy/foreach_target.h"  // must come before highway.h

#include <algorithm>

#include "kernels/cpu/dispatch_float.h"
#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/workspace.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

// Steps of the inner index for which a converted panel (128 bytes a step) stays in the L1 cache
// beside the rows of a tile.
inline constexpr int64_t kMaxSteps = 192;
// FP32 elements of the left factor that a block of rows may have, to stay in the L2 cache.
inline constexpr int64_t kMaxLeftElements = 256 * 1024;
inline constexpr int64_t kMaxBlockRows = 252;
// How far ahead of a panel that is read in place the memory is asked for.
inline constexpr int64_t kFarBytes = 2048;
// Work below which a second thread costs more than it brings, in multiply-adds and weight bytes.
inline constexpr int64_t kParallelMultiplyAdds = 400 * 1000;
inline constexpr int64_t kParallelBytes = 192 * 1024;

inline int64_t PanelWidth(int64_t columns, int64_t panel) {
  const int64_t left = columns - panel * kPanelColumns;
  return left > kPanelAlignment ? kPanelColumns : kPanelAlignment;
}

// The right factor of the forward product: packed panels, [inner, columns] to the tiles.
template <class T>
struct PackedRight {
  using Element = T;
  static constexpr bool kPacked = true;
  const T* data;
  int64_t inner;
  int64_t columns;

  const T* Panel(int64_t panel) const { return data + panel * kPanelColumns * inner; }
  const T* At(int64_t panel, int64_t step) const { return Panel(panel) + step * kPanelColumns; }
  int64_t StepBytes() const { return kPanelColumns * static_cast<int64_t>(sizeof(T)); }
  void Convert(int64_t panel, int64_t begin, int64_t steps, float* to) const {
    const int64_t elements = steps * PanelWidth(columns, panel);
    const T* from = Panel(panel) + begin * PanelWidth(columns, panel);
    for (int64_t i = 0; i < elements; i += 16) Store16(Load16(from + i), to + i);
  }
};

// The right factor of dx = dy W: the plain weight, whose rows are steps of the inner index.
template <class T>
struct PlainRight {
  using Element = T;
  static constexpr bool kPacked = false;
  const T* data;
  int64_t inner;
  int64_t columns;

  const T* At(int64_t panel, int64_t step) const {
    return data + panel * kPanelColumns + step * columns;
  }
  int64_t StepBytes() const { return columns * static_cast<int64_t>(sizeof(T)); }
  void Convert(int64_t panel, int64_t begin, int64_t steps, float* to) const {
    const int64_t width = PanelWidth(columns, panel);
    const int64_t used = std::min(width, columns - panel * kPanelColumns);
    const T* from = At(panel, begin);
    for (int64_t k = 0; k < steps; ++k, from += columns, to += width) {
      for (int64_t j = 0; j < width; j += 16) {
        Store16(Load16(from + j, static_cast<size_t>(std::max<int64_t>(0, used - j))), to + j);
      }
    }
  }
};

// Where finished chains go: bias, then one rounding.
template <class Y, class T>
struct Output {
  Y* y;
  const T* bias;  // or null
  int64_t columns;
  bool saturate;

  // Returns how many stores were saturated.
  size_t Store(int64_t row, int64_t column, int64_t width, const float* chains) const {
    const int64_t count = std::min(width, columns - column);
    Y* to = y + row * columns + column;
    size_t saturated = 0;
    for (int64_t j = 0; j < count; j += 16) {
      const auto used = static_cast<size_t>(count - j);
      F32x16 v = Load16(chains + j);
      if (bias != nullptr) v = v + Load16(bias + column + j, used);
      if (saturate) {
        saturated += StoreSaturated16(v, to + j, used < 16 ? used : 16);
      } else {
        Store16(v, to + j, used);
      }
    }
    return saturated;
  }
};

// Scratch of one thread.
struct ProductScratch {
  float* left;   // [block rows, left stride], where a task converts its own rows
  float* panel;  // [steps, 32]
  float* strip;  // [block rows, 32] chains of one panel
};

template <class A, class Right, class Y>
class Product {
 public:
  using T = typename Right::Element;

  Product(const A* left, int64_t rows, const Right& right, const Output<Y, T>& out)
      : left_(left),
        rows_(rows),
        right_(right),
        out_(out),
        inner_(right.inner),
        left_stride_((right.inner + 15) / 16 * 16 + 16),
        panels_((right.columns + kPanelColumns - 1) / kPanelColumns) {}

  void Run(const ExecContext& ctx) {
    Plan(ctx);
    Workspace::Scope scope(ctx.workspace);
    const int threads = row_blocks_ * groups_ == 1 ? 1 : Threads(ctx);
    const bool shared_left = row_blocks_ == 1;
    const int64_t left_floats = block_rows_ * left_stride_;
    const int64_t panel_floats = std::min(inner_, kMaxSteps) * kPanelColumns;
    const int64_t strip_floats = std::max<int64_t>(block_rows_, kTileRows) * kPanelColumns;
    float* const left = scope.Array<float>(left_floats * (shared_left ? 1 : threads));
    float* const panel = scope.Array<float>(panel_floats * threads);
    float* const strip = scope.Array<float>(strip_floats * threads);
    if (shared_left) {
      ParallelRanges(ctx, rows_, std::max<int64_t>(1, 65536 / std::max<int64_t>(inner_, 1)),
                     [&](int64_t begin, int64_t end, int) {
                       ConvertLeft(begin, end, left + begin * left_stride_);
                     });
    }
    ParallelFor(ctx, row_blocks_ * groups_, [&](int64_t task, int thread) {
      const int64_t block = task / groups_, group = task % groups_;
      const int64_t begin = rows_ * block / row_blocks_, end = rows_ * (block + 1) / row_blocks_;
      const ProductScratch scratch{shared_left ? left : left + thread * left_floats,
                                   panel + thread * panel_floats, strip + thread * strip_floats};
      if (!shared_left) ConvertLeft(begin, end, scratch.left);
      const int64_t unit = (panels_ + kWidePanels - 1) / kWidePanels;
      const int64_t first = std::min(panels_, unit * group / groups_ * kWidePanels);
      const int64_t last = std::min(panels_, unit * (group + 1) / groups_ * kWidePanels);
      const size_t saturated = RunTask(begin, end, first, last, scratch);
      CountSaturated(ctx, static_cast<int64_t>(saturated));
    });
  }

 private:
  static constexpr int64_t kWidePanels = 4;

  // Chooses blocks of rows and groups of panels; one task computes one block for one group.
  void Plan(const ExecContext& ctx) {
    const int64_t fit =
        std::max<int64_t>(kTileRows, kMaxLeftElements / std::max<int64_t>(inner_, 1));
    const int64_t most_rows = std::min(fit, kMaxBlockRows);
    row_blocks_ = std::max<int64_t>(1, (rows_ + most_rows - 1) / most_rows);
    groups_ = 1;
    const int64_t threads = Threads(ctx);
    const int64_t weights = inner_ * right_.columns;
    const bool parallel =
        threads > 1 && (rows_ * weights >= kParallelMultiplyAdds ||
                        weights * static_cast<int64_t>(sizeof(T)) >= kParallelBytes);
    if (parallel) {
      if (row_blocks_ >= threads) {
        row_blocks_ = (row_blocks_ + threads - 1) / threads * threads;
      } else if (row_blocks_ == 1 && panels_ < 8 * threads && rows_ >= 2 * threads * kTileRows) {
        row_blocks_ = threads;
      } else {
        groups_ = std::min((panels_ + kWidePanels - 1) / kWidePanels, 4 * threads);
      }
    }
    block_rows_ = (rows_ + row_blocks_ - 1) / row_blocks_;
  }

  void ConvertLeft(int64_t begin, int64_t end, float* to) const {
    for (int64_t row = begin; row < end; ++row, to += left_stride_) {
      const A* from = left_ + row * inner_;
      int64_t k = 0;
      for (; k + 16 <= inner_; k += 16) Store16(Load16(from + k), to + k);
      if (k < inner_) Store16(Load16(from + k, static_cast<size_t>(inner_ - k)), to + k);
    }
  }

  size_t RunTask(int64_t begin, int64_t end, int64_t first, int64_t last,
                 const ProductScratch& scratch) const {
    size_t saturated = 0;
    const int64_t rows = end - begin;
    int64_t panel = first;
    if constexpr (Right::kPacked) {
      if (rows <= kTileRows) {
        panel = RunWide(begin, rows, first, last, scratch, &saturated);
      }
    }
    for (; panel < last; ++panel) {
      if constexpr (Right::kPacked) {
        if (rows <= kTileRows || sizeof(T) == 4) {
          const T* const data = right_.Panel(panel);
          RunPanel<T>(begin, rows, panel,
                      {data, 0, inner_, data + kFarBytes / sizeof(T), right_.StepBytes()}, scratch,
                      &saturated);
          continue;
        }
      }
      const int64_t blocks = (inner_ + kMaxSteps - 1) / kMaxSteps;
      for (int64_t block = 0; block < std::max<int64_t>(blocks, 1); ++block) {
        const int64_t from = blocks == 0 ? 0 : inner_ * block / blocks;
        const int64_t to = blocks == 0 ? 0 : inner_ * (block + 1) / blocks;
        right_.Convert(panel, from, to - from, scratch.panel);
        const T* const next = to < inner_ ? right_.At(panel, to) : right_.At(panel + 1, 0);
        RunPanel<float>(begin, rows, panel, {scratch.panel, from, to, next, right_.StepBytes()},
                        scratch, &saturated);
      }
    }
    return saturated;
  }

  // Steps [begin, end) of a panel's inner index, and what will be read after them.
  template <class B>
  struct Steps {
    const B* data;
    int64_t begin;
    int64_t end;
    const T* next;
    int64_t next_step;  // bytes
  };

  // All rows of a block by one panel.
  template <class B>
  void RunPanel(int64_t row, int64_t rows, int64_t panel, const Steps<B>& steps,
                const ProductScratch& scratch, size_t* saturated) const {
    const int64_t width = PanelWidth(right_.columns, panel);
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    const bool whole = steps.begin == 0 && steps.end == inner_;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t begin = rows * tile / tiles, end = rows * (tile + 1) / tiles;
      float* const chains = scratch.strip + (whole ? 0 : begin * kPanelColumns);
      for (int64_t column = 0; column < width; column += kTileColumns) {
        TileArgs<B> args{};
        args.a = scratch.left + begin * left_stride_ + steps.begin;
        args.a_row = left_stride_;
        args.b = steps.data + column;
        args.b_step = width;
        args.steps = steps.end - steps.begin;
        args.c = chains + column;
        args.c_row = kPanelColumns;
        args.continued = steps.begin != 0;
        const bool first = tile == 0 && column == 0;
        args.next = first ? static_cast<const void*>(steps.next) : args.a;
        args.next_step = first ? steps.next_step : 0;
        if (width - column >= kTileColumns) {
          kTiles<2, 1, false, B>[end - begin - 1](args);
        } else {
          kTiles<1, 1, false, B>[end - begin - 1](args);
        }
      }
      if (steps.end < inner_) continue;
      for (int64_t r = begin; r < end; ++r) {
        *saturated +=
            out_.Store(row + r, panel * kPanelColumns, width, chains + (r - begin) * kPanelColumns);
      }
    }
  }

  // Few rows by several panels at once, which keeps more chains in flight and reads more streams.
  template <int kPanels>
  int64_t RunWideGroups(int64_t row, int64_t rows, int64_t panel, int64_t last,
                        const ProductScratch& scratch, size_t* saturated) const {
    constexpr int kVecs = static_cast<int>(kPanelColumns / kTileLanes);
    constexpr int kMaxRows = kTileRows * 2 / (kVecs * kPanels);
    constexpr int64_t kColumns = kPanels * kPanelColumns;
    const int64_t full =
        right_.columns > (panels_ - 1) * kPanelColumns + kPanelAlignment ? panels_ : panels_ - 1;
    for (; panel + kPanels <= std::min(last, full); panel += kPanels) {
      TileArgs<T> args{};
      args.a = scratch.left;
      args.a_row = left_stride_;
      args.b = right_.Panel(panel);
      args.b_step = kPanelColumns;
      args.b_panel = kPanelColumns * inner_;
      args.steps = inner_;
      args.c = scratch.strip;
      args.c_row = kColumns;
      args.next = args.b + kPanels * args.b_panel;
      args.next_step = kPanels * right_.StepBytes();
      kTiles<kVecs, kPanels, false, T, kMaxRows>[rows - 1](args);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t p = 0; p < kPanels; ++p) {
          *saturated += out_.Store(row + r, (panel + p) * kPanelColumns, kPanelColumns,
                                   scratch.strip + r * kColumns + p * kPanelColumns);
        }
      }
    }
    return panel;
  }

  // Returns the first panel that is left to do.
  int64_t RunWide(int64_t row, int64_t rows, int64_t first, int64_t last,
                  const ProductScratch& scratch, size_t* saturated) const {
    constexpr int kLanesRatio = static_cast<int>(kPanelColumns / kTileColumns);
    if (rows == 0) return last;
    if constexpr (kLanesRatio == 1) {
      if (rows <= kTileRows / 4)
        return RunWideGroups<4>(row, rows, first, last, scratch, saturated);
      if (rows <= kTileRows / 2)
        return RunWideGroups<2>(row, rows, first, last, scratch, saturated);
    } else {
      if (rows <= kTileRows / 2)
        return RunWideGroups<1>(row, rows, first, last, scratch, saturated);
    }
    return first;
  }

  const A* left_;
  int64_t rows_;
  Right right_;
  Output<Y, T> out_;
  int64_t inner_;
  int64_t left_stride_;
  int64_t panels_;
  int64_t row_blocks_ = 1;
  int64_t groups_ = 1;
  int64_t block_rows_ = 0;
};

template <class Y, class T>
void Forward(const ExecContext& ctx, ConstTensor x, const LinearWeight& weight, Tensor y) {
  const int64_t out = weight.weight.dim(0), in = weight.weight.dim(1);
  const auto* packed = static_cast<const T*>(weight.packed.data());
  const Output<Y, T> output{y.as<Y>(), weight.bias.as<T>(), out, true};
  Product<T, PackedRight<T>, Y>(x.as<T>(), x.dim(0), {packed, in, out}, output).Run(ctx);
}

void LinearImpl(const ExecContext& ctx, ConstTensor x, const LinearWeight& weight, Tensor y) {
  DispatchFloat(x.dtype(), [&]<class T>() {
    if (y.dtype() == DType::kFloat32) {
      Forward<float, T>(ctx, x, weight, y);
    } else {
      Forward<T, T>(ctx, x, weight, y);
    }
  });
}

void LinearBackwardInputImpl(const ExecContext& ctx, ConstTensor dy, const LinearWeight& weight,
                             Tensor dx) {
  const int64_t out = weight.weight.dim(0), in = weight.weight.dim(1);
  DispatchFloat(dy.dtype(), [&]<class T>() {
    const Output<T, T> output{dx.as<T>(), nullptr, in, false};
    const PlainRight<T> right{weight.weight.as<T>(), out, in};
    Product<T, PlainRight<T>, T>(dy.as<T>(), dy.dim(0), right, output).Run(ctx);
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
