// SPDX-License-Identifier: Apache-2.0
// RMSNorm: a warp per row, and for the gradient of the weight a thread per column, whose chain over
// ascending rows continues from what the accumulator holds.
#include "kernels/ops/norm.h"

#include "kernels/cuda/backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_access.h"
#include "kernels/dispatch_float.h"
#include "kernels/dispatch_or_float.h"

namespace halfstep::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;

struct Extent {
  int64_t rows;
  int64_t width;
};

template <bool aligned, class X, class W, class Y>
HALFSTEP_KERNEL void NormRows(Extent extent, float epsilon, Pointer<const X> x,
                              Pointer<const W> weight, Pointer<Y> y, Pointer<float> rstd,
                              Pointer<unsigned long long> saturation) {
  const int64_t row = int64_t{BlockX()} * kWarps + Warp();
  if (row >= extent.rows) return;
  const Pointer<const X> from = x + row * extent.width;
  const Pointer<Y> to = y + row * extent.width;
  float squares = 0;
  for (int64_t i = Lane() * kGroup; i < extent.width; i += kWarpSize * kGroup) {
    float v[kGroup];
    LoadGroup<aligned>(from, i, extent.width - i, v);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) squares = Fma(v[j], v[j], squares);
  }
  squares = WarpSum(squares);
  const float scale = 1.0f / SquareRoot(squares / static_cast<float>(extent.width) + epsilon);
  int saturated = 0;
  for (int64_t i = Lane() * kGroup; i < extent.width; i += kWarpSize * kGroup) {
    float v[kGroup], w[kGroup];
    LoadGroup<aligned>(from, i, extent.width - i, v);
    LoadGroup<aligned>(weight, i, extent.width - i, w);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) v[j] = v[j] * scale * w[j];
    StoreGroup<aligned>(to, i, extent.width - i, v,
                        [&](float value) { return RoundSaturated<Y>(value, saturated); });
  }
  if (Lane() == 0 && !rstd.empty()) rstd[row] = scale;
  CountSaturated(saturation, saturated);
}

// dx = rstd * (dy * weight - x * mean(dy * weight * x) * rstd^2)
template <bool aligned, class Dy, class X, class W>
HALFSTEP_KERNEL void NormRowsBackward(Extent extent, Pointer<const Dy> dy, Pointer<const X> x,
                                      Pointer<const W> weight, Pointer<const float> rstd,
                                      Pointer<X> dx) {
  const int64_t row = int64_t{BlockX()} * kWarps + Warp();
  if (row >= extent.rows) return;
  const int64_t at = row * extent.width;
  float dot = 0;
  for (int64_t i = Lane() * kGroup; i < extent.width; i += kWarpSize * kGroup) {
    float d[kGroup], v[kGroup], w[kGroup];
    LoadGroup<aligned>(dy + at, i, extent.width - i, d);
    LoadGroup<aligned>(x + at, i, extent.width - i, v);
    LoadGroup<aligned>(weight, i, extent.width - i, w);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) dot = Fma(d[j] * w[j], v[j], dot);
  }
  const float scale = rstd[row];
  const float mean = WarpSum(dot) / static_cast<float>(extent.width);
  const float projection = mean * scale * scale;
  for (int64_t i = Lane() * kGroup; i < extent.width; i += kWarpSize * kGroup) {
    float d[kGroup], v[kGroup], w[kGroup];
    LoadGroup<aligned>(dy + at, i, extent.width - i, d);
    LoadGroup<aligned>(x + at, i, extent.width - i, v);
    LoadGroup<aligned>(weight, i, extent.width - i, w);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) d[j] = scale * Fma(-v[j], projection, d[j] * w[j]);
    StoreGroup<aligned>(dx + at, i, extent.width - i, d,
                        [](float value) { return Round<X>(value); });
  }
}

template <class Dy, class X>
HALFSTEP_KERNEL void NormWeightBackward(Extent extent, Pointer<const Dy> dy, Pointer<const X> x,
                                        Pointer<const float> rstd, Pointer<float> dweight) {
  const int64_t column = int64_t{BlockX()} * BlockThreads() + ThreadIndex();
  if (column >= extent.width) return;
  float sum = dweight[column];
  for (int64_t row = 0; row < extent.rows; ++row) {
    const int64_t i = row * extent.width + column;
    sum = Fma(Widen(dy[i]), Widen(x[i]) * rstd[row], sum);
  }
  dweight[column] = sum;
}

template <class X, class W, class Y>
void NormOf(const ExecContext& ctx, ConstTensor x, ConstTensor weight, float epsilon, Tensor y,
            Tensor rstd) {
  const Extent extent{x.dim(0), x.dim(1)};
  const auto from = PointerTo<const X>(x);
  const auto scales = PointerTo<const W>(weight);
  const auto to = PointerTo<Y>(y);
  const bool aligned = RowsAreAligned(from, extent.width) && RowsAreAligned(to, extent.width) &&
                       RowsAreAligned(scales, extent.width);
  const LaunchShape shape{"RmsNorm", CeilDivide(extent.rows, kWarps), 1, kThreads};
  Launch(ctx, shape, aligned ? NormRows<true, X, W, Y> : NormRows<false, X, W, Y>, extent, epsilon,
         from, scales, to, PointerTo<float>(rstd), SaturationCounter(ctx));
}

template <class Dy, class X, class W>
void NormBackwardOf(const ExecContext& ctx, ConstTensor dy, ConstTensor x, ConstTensor weight,
                    ConstTensor rstd, Tensor dx, Tensor dweight) {
  const Extent extent{x.dim(0), x.dim(1)};
  const auto gradient = PointerTo<const Dy>(dy);
  const auto values = PointerTo<const X>(x);
  const auto scales = PointerTo<const W>(weight);
  const auto to = PointerTo<X>(dx);
  const auto inverse = PointerTo<const float>(rstd);
  // Before dx, which may be the memory of dy.
  constexpr int kColumns = 64;
  Launch(ctx, {"RmsNormBackward weight", CeilDivide(extent.width, kColumns), 1, kColumns},
         NormWeightBackward<Dy, X>, extent, gradient, values, inverse, PointerTo<float>(dweight));
  const bool aligned = RowsAreAligned(gradient, extent.width) &&
                       RowsAreAligned(values, extent.width) &&
                       RowsAreAligned(scales, extent.width) && RowsAreAligned(to, extent.width);
  Launch(ctx, {"RmsNormBackward", CeilDivide(extent.rows, kWarps), 1, kThreads},
         aligned ? NormRowsBackward<true, Dy, X, W> : NormRowsBackward<false, Dy, X, W>, extent,
         gradient, values, scales, inverse, to);
}

}  // namespace

void RmsNorm(const ExecContext& ctx, ConstTensor x, ConstTensor weight, float epsilon, Tensor y,
             Tensor rstd) {
  DispatchFloat(weight.dtype(), [&]<class W>() {
    DispatchOrFloat<W>(x.dtype(), [&]<class X>() {
      DispatchOrFloat<W>(y.dtype(),
                         [&]<class Y>() { NormOf<X, W, Y>(ctx, x, weight, epsilon, y, rstd); });
    });
  });
}

void RmsNormBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor x, ConstTensor weight,
                     ConstTensor rstd, Tensor dx, Tensor dweight) {
  DispatchFloat(weight.dtype(), [&]<class W>() {
    DispatchOrFloat<W>(dy.dtype(), [&]<class Dy>() {
      DispatchOrFloat<W>(x.dtype(), [&]<class X>() {
        NormBackwardOf<Dy, X, W>(ctx, dy, x, weight, rstd, dx, dweight);
      });
    });
  });
}

}  // namespace halfstep::cuda
