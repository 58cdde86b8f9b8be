// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding: pairs (i, i + head_dim / 2), one vector of pairs at a time.
#include "kernels/cpu/rope.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cpu/parallel.h"
#include "kernels/dispatch_float.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {
namespace {

constexpr int64_t kGrainElements = 16384;

void CheckPositions(ConstTensor positions, int64_t rows) {
  const int32_t* position = positions.as<int32_t>();
  for (int64_t t = 0; t < positions.dim(0); ++t) {
    HALFSTEP_CHECK_GE(position[t], 0);
    HALFSTEP_CHECK_LT(position[t], rows);
  }
}

// Rotates one head. x and y may be the same memory: each pair is read before it is written.
template <class T, bool kBackward>
HWY_INLINE size_t RotateHead(const T* x, const float* cosines, const float* sines, size_t half,
                             T* y) {
  size_t saturated = 0;
  for (size_t i = 0; i < half; i += kVirtualLanes) {
    const size_t rest = half - i;
    const F32x16 cosine = Load16(cosines + i, rest);
    const F32x16 sine = Load16(sines + i, rest);
    const F32x16 a = Load16(x + i, rest);
    const F32x16 b = Load16(x + half + i, rest);
    if constexpr (kBackward) {
      Store16(MulAdd(b, sine, a * cosine), y + i, rest);
      Store16(NegMulAdd(a, sine, b * cosine), y + half + i, rest);
    } else {
      const size_t stored = std::min(rest, kVirtualLanes);
      saturated += StoreSaturated16(NegMulAdd(b, sine, a * cosine), y + i, stored);
      saturated += StoreSaturated16(MulAdd(a, sine, b * cosine), y + half + i, stored);
    }
  }
  return saturated;
}

template <bool kBackward>
void Rotate(const ExecContext& ctx, ConstTensor x, ConstTensor positions, ConstTensor table,
            Tensor y) {
  CheckPositions(positions, table.dim(0));
  const int64_t heads = x.dim(1);
  const int64_t width = x.dim(2);
  const int64_t half = width / 2;
  const int32_t* position = positions.as<int32_t>();
  const float* rows = table.as<float>();
  DispatchFloat(x.dtype(), [&]<class T>() {
    const T* from = x.as<T>();
    T* to = y.as<T>();
    const int64_t grain = kGrainElements / std::max<int64_t>(heads * width, 1);
    ParallelRanges(ctx, x.dim(0), grain, [=, &ctx](int64_t begin, int64_t end, int) {
      size_t saturated = 0;
      for (int64_t t = begin; t < end; ++t) {
        const float* cosines = rows + position[t] * width;
        for (int64_t h = 0; h < heads; ++h) {
          const int64_t at = (t * heads + h) * width;
          saturated += RotateHead<T, kBackward>(from + at, cosines, cosines + half,
                                                static_cast<size_t>(half), to + at);
        }
      }
      CountSaturated(ctx, static_cast<int64_t>(saturated));
    });
  });
}

void RopeImpl(const ExecContext& ctx, ConstTensor x, ConstTensor positions, ConstTensor table,
              Tensor y) {
  Rotate<false>(ctx, x, positions, table, y);
}

void RopeBackwardImpl(const ExecContext& ctx, ConstTensor dy, ConstTensor positions,
                      ConstTensor table, Tensor dx) {
  Rotate<true>(ctx, dy, positions, table, dx);
}

}  // namespace
}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfstep::cpu {

HWY_EXPORT(RopeImpl);
void Rope(const ExecContext& ctx, ConstTensor x, ConstTensor positions, ConstTensor table,
          Tensor y) {
  HWY_DYNAMIC_DISPATCH(RopeImpl)(ctx, x, positions, table, y);
}

HWY_EXPORT(RopeBackwardImpl);
void RopeBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor positions, ConstTensor table,
                  Tensor dx) {
  HWY_DYNAMIC_DISPATCH(RopeBackwardImpl)(ctx, dy, positions, table, dx);
}

}  // namespace halfstep::cpu
#endif
