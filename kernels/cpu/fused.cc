// SPDX-License-Identifier: Apache-2.0
// The fused operations of the fast profile, a row or a head at a time.
#include "kernels/cpu/fused.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/cpu/parallel.h"
#include "kernels/dispatch_float.h"
#include "kernels/dispatch_or_float.h"
#include "kernels/workspace.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/fused.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {
namespace {

constexpr int64_t kGrainElements = 16384;

float ReciprocalRoot(float sum_of_squares, size_t width, float epsilon) {
  return 1.0f / std::sqrt(sum_of_squares / static_cast<float>(width) + epsilon);
}

// `exact` keeps the unrounded sum: [width] floats, rounded up to whole vectors.
template <class R, class W, class Y>
size_t AddRmsNormRow(const R* residual, const float* delta, const W* weight, size_t width,
                     float epsilon, float* exact, R* sum, Y* y) {
  size_t saturated = 0;
  F32x16 squares = Zero16();
  for (size_t i = 0; i < width; i += kVirtualLanes) {
    const size_t rest = std::min(width - i, kVirtualLanes);
    const F32x16 v = Load16(residual + i, rest) + Load16(delta + i, rest);
    Store16(v, exact + i);
    squares = MulAdd(v, v, squares);
    saturated += StoreSaturated16(v, sum + i, rest);
  }
  const F32x16 scale = Set16(ReciprocalRoot(ReduceSum(squares), width, epsilon));
  for (size_t i = 0; i < width; i += kVirtualLanes) {
    const size_t rest = std::min(width - i, kVirtualLanes);
    saturated +=
        StoreSaturated16(Load16(exact + i) * scale * Load16(weight + i, rest), y + i, rest);
  }
  return saturated;
}

template <class R, class W, class Y>
void AddRmsNormRows(const ExecContext& ctx, ConstTensor residual, ConstTensor delta,
                    const W* weight, float epsilon, Tensor sum, Tensor y) {
  const auto width = static_cast<size_t>(residual.dim(1));
  const size_t padded = (width + kVirtualLanes - 1) / kVirtualLanes * kVirtualLanes;
  Workspace::Scope scope(ctx.workspace);
  float* const exact = scope.Array<float>(static_cast<size_t>(Threads(ctx)) * padded);
  const int64_t grain = kGrainElements / std::max<int64_t>(residual.dim(1), 1);
  ParallelRanges(ctx, residual.dim(0), grain, [&](int64_t begin, int64_t end, int thread) {
    size_t saturated = 0;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t at = r * residual.dim(1);
      saturated += AddRmsNormRow(residual.as<R>() + at, delta.as<float>() + at, weight, width,
                                 epsilon, exact + static_cast<size_t>(thread) * padded,
                                 sum.as<R>() + at, y.as<Y>() + at);
    }
    CountSaturated(ctx, static_cast<int64_t>(saturated));
  });
}

void AddRmsNormImpl(const ExecContext& ctx, ConstTensor residual, ConstTensor delta,
                    ConstTensor weight, float epsilon, Tensor sum, Tensor y) {
  DispatchFloat(weight.dtype(), [&]<class W>() {
    DispatchOrFloat<W>(residual.dtype(), [&]<class R>() {
      DispatchOrFloat<W>(y.dtype(), [&]<class Y>() {
        AddRmsNormRows<R, W, Y>(ctx, residual, delta, weight.as<W>(), epsilon, sum, y);
      });
    });
  });
}

// One head of `2 * half` elements: normalised if there is a weight, then rotated.
template <class T>
size_t FinishHead(const float* x, const T* weight, float epsilon, const float* cosines,
                  const float* sines, size_t half, T* y) {
  F32x16 scale = Set16(1.0f);
  if (weight != nullptr) {
    F32x16 squares = Zero16();
    for (size_t i = 0; i < 2 * half; i += kVirtualLanes) {
      const F32x16 v = Load16(x + i, 2 * half - i);
      squares = MulAdd(v, v, squares);
    }
    scale = Set16(ReciprocalRoot(ReduceSum(squares), 2 * half, epsilon));
  }
  size_t saturated = 0;
  for (size_t i = 0; i < half; i += kVirtualLanes) {
    const size_t rest = std::min(half - i, kVirtualLanes);
    F32x16 a = Load16(x + i, rest);
    F32x16 b = Load16(x + half + i, rest);
    if (weight != nullptr) {
      a = a * scale * Load16(weight + i, rest);
      b = b * scale * Load16(weight + half + i, rest);
    }
    const F32x16 cosine = Load16(cosines + i, rest);
    const F32x16 sine = Load16(sines + i, rest);
    saturated += StoreSaturated16(NegMulAdd(b, sine, a * cosine), y + i, rest);
    saturated += StoreSaturated16(MulAdd(a, sine, b * cosine), y + half + i, rest);
  }
  return saturated;
}

template <class T>
size_t FinishToken(const ProjectedHeads& in, int64_t token, Tensor q, Tensor k, Tensor v) {
  const int64_t head_dim = q.dim(2), heads = q.dim(1), kv_heads = k.dim(1);
  const auto half = static_cast<size_t>(head_dim / 2);
  const int32_t position = in.positions.as<int32_t>()[token];
  HALFSTEP_CHECK_GE(position, 0);
  HALFSTEP_CHECK_LT(position, in.rope_table.dim(0));
  const float* const cosines = in.rope_table.as<float>() + position * head_dim;
  const float* x = in.qkv.as<float>() + token * in.qkv.dim(1);
  size_t saturated = 0;
  const auto finish = [&](int64_t count, ConstTensor weight, T* y) HWY_ATTR {
    for (int64_t h = 0; h < count; ++h, x += head_dim, y += head_dim) {
      saturated += FinishHead(x, weight.empty() ? nullptr : weight.as<T>(), in.epsilon, cosines,
                              cosines + half, half, y);
    }
  };
  finish(heads, in.q_norm, q.as<T>() + token * heads * head_dim);
  finish(kv_heads, in.k_norm, k.as<T>() + token * kv_heads * head_dim);
  T* const values = v.as<T>() + token * kv_heads * head_dim;
  const auto width = static_cast<size_t>(kv_heads * head_dim);
  for (size_t i = 0; i < width; i += kVirtualLanes) {
    const size_t rest = std::min(width - i, kVirtualLanes);
    saturated += StoreSaturated16(Load16(x + i, rest), values + i, rest);
  }
  return saturated;
}

void FinishHeadsImpl(const ExecContext& ctx, const ProjectedHeads& in, Tensor q, Tensor k,
                     Tensor v) {
  DispatchFloat(q.dtype(), [&]<class T>() {
    const int64_t grain = kGrainElements / std::max<int64_t>(in.qkv.dim(1), 1);
    ParallelRanges(ctx, q.dim(0), grain, [&](int64_t begin, int64_t end, int) {
      size_t saturated = 0;
      for (int64_t t = begin; t < end; ++t) saturated += FinishToken<T>(in, t, q, k, v);
      CountSaturated(ctx, static_cast<int64_t>(saturated));
    });
  });
}

}  // namespace
}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfstep::cpu {

HWY_EXPORT(AddRmsNormImpl);
void AddRmsNorm(const ExecContext& ctx, ConstTensor residual, ConstTensor delta, ConstTensor weight,
                float epsilon, Tensor sum, Tensor y) {
  HWY_DYNAMIC_DISPATCH(AddRmsNormImpl)(ctx, residual, delta, weight, epsilon, sum, y);
}

HWY_EXPORT(FinishHeadsImpl);
void FinishHeads(const ExecContext& ctx, const ProjectedHeads& in, Tensor q, Tensor k, Tensor v) {
  HWY_DYNAMIC_DISPATCH(FinishHeadsImpl)(ctx, in, q, k, v);
}

}  // namespace halfstep::cpu
#endif
