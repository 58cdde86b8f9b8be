// SPDX-License-Identifier: Apache-2.0
// RMSNorm. Lane i sums the squares of elements i, i + 16, ...; the fixed tree of ReduceSum joins
// lanes.
#include "kernels/cpu/norm.h"

#include <algorithm>

#include "kernels/cpu/parallel.h"
#include "kernels/dispatch_float.h"
#include "kernels/dispatch_or_float.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/norm.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {
namespace {

// Elements that a thread should get at least.
constexpr int64_t kGrainElements = 16384;

template <class T>
HWY_INLINE float SumOfSquares(const T* HWY_RESTRICT x, size_t width) {
  F32x16 sum = Zero16();
  size_t i = 0;
  for (; i + kVirtualLanes <= width; i += kVirtualLanes) {
    const F32x16 v = Load16(x + i);
    sum = MulAdd(v, v, sum);
  }
  if (i < width) {
    const F32x16 v = Load16(x + i, width - i);
    sum = MulAdd(v, v, sum);
  }
  return ReduceSum(sum);
}

// x and y may be the same row.
template <class X, class W, class Y>
HWY_INLINE size_t NormRow(const X* x, const W* weight, size_t width, float rstd, Y* y) {
  const F32x16 scale = Set16(rstd);
  size_t saturated = 0;
  size_t i = 0;
  for (; i + kVirtualLanes <= width; i += kVirtualLanes) {
    saturated += StoreSaturated16(Load16(x + i) * scale * Load16(weight + i), y + i);
  }
  if (i < width) {
    const size_t rest = width - i;
    saturated +=
        StoreSaturated16(Load16(x + i, rest) * scale * Load16(weight + i, rest), y + i, rest);
  }
  return saturated;
}

// dx = rstd * (dy * weight - x * mean(dy * weight * x) * rstd^2)
template <class Dy, class X, class W>
HWY_INLINE void NormBackwardRow(const Dy* dy, const X* x, const W* weight, size_t width, float rstd,
                                X* dx) {
  F32x16 dot = Zero16();
  for (size_t i = 0; i < width; i += kVirtualLanes) {
    const size_t rest = width - i;
    dot = MulAdd(Load16(dy + i, rest) * Load16(weight + i, rest), Load16(x + i, rest), dot);
  }
  const float mean = ReduceSum(dot) / static_cast<float>(width);
  const F32x16 scale = Set16(rstd);
  const F32x16 pull = Set16(mean * rstd * rstd);
  for (size_t i = 0; i < width; i += kVirtualLanes) {
    const size_t rest = width - i;
    const F32x16 along = Load16(dy + i, rest) * Load16(weight + i, rest);
    Store16(NegMulAdd(Load16(x + i, rest), pull, along) * scale, dx + i, rest);
  }
}

// `Vectors` neighbouring vectors of dweight, of which the last holds `last` columns: as many
// independent chains over the rows, each continuing from what dweight holds.
template <size_t Vectors, class Dy, class X>
HWY_INLINE void WeightGradientColumns(const Dy* dy, const X* x, const float* rstd, int64_t rows,
                                      int64_t width, size_t last, float* dweight) {
  constexpr size_t kWhole = Vectors - 1;
  F32x16 sum[Vectors];
  for (size_t v = 0; v < kWhole; ++v) sum[v] = Load16(dweight + v * kVirtualLanes);
  sum[kWhole] = Load16(dweight + kWhole * kVirtualLanes, last);
  for (int64_t r = 0; r < rows; ++r, dy += width, x += width) {
    const F32x16 scale = Set16(rstd[r]);
    for (size_t v = 0; v < kWhole; ++v) {
      const size_t i = v * kVirtualLanes;
      sum[v] = MulAdd(Load16(dy + i), Load16(x + i) * scale, sum[v]);
    }
    const size_t i = kWhole * kVirtualLanes;
    sum[kWhole] = MulAdd(Load16(dy + i, last), Load16(x + i, last) * scale, sum[kWhole]);
  }
  for (size_t v = 0; v < kWhole; ++v) Store16(sum[v], dweight + v * kVirtualLanes);
  Store16(sum[kWhole], dweight + kWhole * kVirtualLanes, last);
}

// Columns [begin, end) of dweight.
template <class Dy, class X>
void WeightGradient(const Dy* dy, const X* x, const float* rstd, int64_t rows, int64_t width,
                    int64_t begin, int64_t end, float* dweight) {
  for (int64_t i = begin; i < end;) {
    const int64_t vectors = std::min<int64_t>((end - i + 15) / 16, 4);
    const int64_t columns = std::min(vectors * 16, end - i);
    const size_t last = static_cast<size_t>(columns - (vectors - 1) * 16);
    switch (vectors) {
      case 1:
        WeightGradientColumns<1>(dy + i, x + i, rstd, rows, width, last, dweight + i);
        break;
      case 2:
        WeightGradientColumns<2>(dy + i, x + i, rstd, rows, width, last, dweight + i);
        break;
      case 3:
        WeightGradientColumns<3>(dy + i, x + i, rstd, rows, width, last, dweight + i);
        break;
      default:
        WeightGradientColumns<4>(dy + i, x + i, rstd, rows, width, last, dweight + i);
    }
    i += columns;
  }
}

template <class X, class W, class Y>
void NormRows(const ExecContext& ctx, ConstTensor x, const W* weight, float epsilon, Tensor y,
              float* rstd) {
  const int64_t width = x.dim(1);
  const X* from = x.as<X>();
  Y* to = y.as<Y>();
  const int64_t grain = kGrainElements / std::max<int64_t>(width, 1);
  ParallelRanges(ctx, x.dim(0), grain, [=, &ctx](int64_t begin, int64_t end, int) {
    size_t saturated = 0;
    for (int64_t r = begin; r < end; ++r) {
      const size_t n = static_cast<size_t>(width);
      const float mean = SumOfSquares(from + r * width, n) / static_cast<float>(width);
      const float scale = 1.0f / hn::GetLane(hn::Sqrt(hn::Set(kF32, mean + epsilon)));
      saturated += NormRow(from + r * width, weight, n, scale, to + r * width);
      if (rstd != nullptr) rstd[r] = scale;
    }
    CountSaturated(ctx, static_cast<int64_t>(saturated));
  });
}

void RmsNormImpl(const ExecContext& ctx, ConstTensor x, ConstTensor weight, float epsilon, Tensor y,
                 Tensor rstd) {
  DispatchFloat(weight.dtype(), [&]<class W>() {
    DispatchOrFloat<W>(x.dtype(), [&]<class X>() {
      DispatchOrFloat<W>(y.dtype(), [&]<class Y>() {
        NormRows<X, W, Y>(ctx, x, weight.as<W>(), epsilon, y, rstd.as<float>());
      });
    });
  });
}

template <class Dy, class X, class W>
void NormRowsBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor x, const W* weight,
                      const float* rstd, Tensor dx, float* dweight) {
  const int64_t rows = x.dim(0);
  const int64_t width = x.dim(1);
  const Dy* dout = dy.as<Dy>();
  const X* in = x.as<X>();
  // Before dx, which may be the memory of dy.
  const int64_t vectors = (width + 15) / 16;
  ParallelRanges(ctx, vectors, kGrainElements / std::max<int64_t>(16 * rows, 1),
                 [=](int64_t begin, int64_t end, int) {
                   WeightGradient(dout, in, rstd, rows, width, begin * 16,
                                  std::min(end * 16, width), dweight);
                 });
  X* to = dx.as<X>();
  ParallelRanges(ctx, rows, kGrainElements / std::max<int64_t>(width, 1),
                 [=](int64_t begin, int64_t end, int) {
                   for (int64_t r = begin; r < end; ++r) {
                     NormBackwardRow(dout + r * width, in + r * width, weight,
                                     static_cast<size_t>(width), rstd[r], to + r * width);
                   }
                 });
}

void RmsNormBackwardImpl(const ExecContext& ctx, ConstTensor dy, ConstTensor x, ConstTensor weight,
                         ConstTensor rstd, Tensor dx, Tensor dweight) {
  DispatchFloat(weight.dtype(), [&]<class W>() {
    DispatchOrFloat<W>(x.dtype(), [&]<class X>() {
      DispatchOrFloat<W>(dy.dtype(), [&]<class Dy>() {
        NormRowsBackward<Dy, X, W>(ctx, dy, x, weight.as<W>(), rstd.as<float>(), dx,
                                   dweight.as<float>());
      });
    });
  });
}

}  // namespace
}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfstep::cpu {

HWY_EXPORT(RmsNormImpl);
void RmsNorm(const ExecContext& ctx, ConstTensor x, ConstTensor weight, float epsilon, Tensor y,
             Tensor rstd) {
  HWY_DYNAMIC_DISPATCH(RmsNormImpl)(ctx, x, weight, epsilon, y, rstd);
}

HWY_EXPORT(RmsNormBackwardImpl);
void RmsNormBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor x, ConstTensor weight,
                     ConstTensor rstd, Tensor dx, Tensor dweight) {
  HWY_DYNAMIC_DISPATCH(RmsNormBackwardImpl)(ctx, dy, x, weight, rstd, dx, dweight);
}

}  // namespace halfstep::cpu
#endif
