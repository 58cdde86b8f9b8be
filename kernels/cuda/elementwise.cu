// SPDX-License-Identifier: Apache-2.0
// Sums and casts, a thread per group of elements.
#include "kernels/ops/elementwise.h"

#include "kernels/cuda/backend.h"
#include "kernels/cuda/flat_access.h"
#include "kernels/cuda/launch.h"
#include "kernels/dispatch_float.h"

namespace halfstep::cuda {
namespace {

struct FlatExtent {
  int64_t count;
  bool aligned;
  bool saturate;  // false: what overflows becomes infinity
};

template <class T>
HALFSTEP_DEVICE void StoreRounded(const FlatExtent& extent, Pointer<T> y, int64_t i,
                                  const float (&v)[kGroup],
                                  Pointer<unsigned long long> saturation) {
  int saturated = 0;
  StoreFlat(extent.aligned, y, i, extent.count - i, v, [&](float value) {
    return extent.saturate ? RoundSaturated<T>(value, saturated) : Round<T>(value);
  });
  CountSaturated(saturation, saturated);
}

template <class T>
HALFSTEP_KERNEL void AddGroups(FlatExtent extent, Pointer<const T> a, Pointer<const T> b,
                               Pointer<T> y, Pointer<unsigned long long> saturation) {
  const int64_t i = GridThread() * kGroup;
  if (i >= extent.count) return;
  float v[kGroup], w[kGroup];
  LoadFlat(extent.aligned, a, i, extent.count - i, v);
  LoadFlat(extent.aligned, b, i, extent.count - i, w);
#pragma unroll
  for (int j = 0; j < kGroup; ++j) v[j] += w[j];
  StoreRounded(extent, y, i, v, saturation);
}

template <class From, class To>
HALFSTEP_KERNEL void CastGroups(FlatExtent extent, Pointer<const From> x, Pointer<To> y,
                                Pointer<unsigned long long> saturation) {
  const int64_t i = GridThread() * kGroup;
  if (i >= extent.count) return;
  float v[kGroup];
  LoadFlat(extent.aligned, x, i, extent.count - i, v);
  StoreRounded(extent, y, i, v, saturation);
}

// Four elements a thread, so that a warp reads and writes whole lines.
constexpr int kQuad = Pack<float>::kCount;

HALFSTEP_KERNEL void AccumulateQuads(FlatExtent extent, Pointer<const float> x, Pointer<float> y) {
  const int64_t i = GridThread() * kQuad;
  if (i >= extent.count) return;
  if (extent.aligned && i + kQuad <= extent.count) {
    const Pack<float> addend = LoadPack(x, i);
    Pack<float> sum = LoadPack(Pointer<const float>(y), i);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) sum.values[j] += addend.values[j];
    StorePack(y, i, sum);
  } else {
    for (int64_t k = i; k < i + kQuad && k < extent.count; ++k) y[k] = y[k] + x[k];
  }
}

}  // namespace

void Add(const ExecContext& ctx, ConstTensor a, ConstTensor b, Overflow overflow, Tensor y) {
  DispatchFloat(y.dtype(), [&]<class T>() {
    const auto left = PointerTo<const T>(a);
    const auto right = PointerTo<const T>(b);
    const auto to = PointerTo<T>(y);
    const FlatExtent extent{y.elements(), IsAligned(left) && IsAligned(right) && IsAligned(to),
                            overflow == Overflow::kSaturate};
    Launch(ctx, FlatShape("Add", CeilDivide(extent.count, kGroup)), AddGroups<T>, extent, left,
           right, to, SaturationCounter(ctx));
  });
}

void Accumulate(const ExecContext& ctx, ConstTensor x, Tensor y) {
  const auto from = PointerTo<const float>(x);
  const auto to = PointerTo<float>(y);
  const FlatExtent extent{y.elements(), IsAligned(from) && IsAligned(to), false};
  Launch(ctx, FlatShape("Accumulate", CeilDivide(extent.count, kQuad)), AccumulateQuads, extent,
         from, to);
}

void Cast(const ExecContext& ctx, ConstTensor x, Overflow overflow, Tensor y) {
  DispatchFloat(x.dtype(), [&]<class From>() {
    const auto from = PointerTo<const From>(x);
    DispatchFloat(y.dtype(), [&]<class To>() {
      const auto to = PointerTo<To>(y);
      const FlatExtent extent{y.elements(), IsAligned(from) && IsAligned(to),
                              overflow == Overflow::kSaturate};
      Launch(ctx, FlatShape("Cast", CeilDivide(extent.count, kGroup)), CastGroups<From, To>, extent,
             from, to, SaturationCounter(ctx));
    });
  });
}

}  // namespace halfstep::cuda
