// SPDX-License-Identifier: Apache-2.0
// Gradient statistics and AdamW, one vector of parameters at a time.
#include "kernels/cpu/optimizer.h"

#include <algorithm>
#include <cmath>

#include "kernels/adamw_coefficients.h"
#include "kernels/cpu/parallel.h"
#include "kernels/dispatch_float.h"
#include "kernels/workspace.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/optimizer.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {
namespace {

// Elements whose squares one task sums; fixed, so that threads change no bit of the norm.
constexpr int64_t kChunkElements = 4096;
constexpr int64_t kGrainElements = 16384;

using F64 = hn::Repartition<double, F32>;

// Squares of 16 lanes, summed in as many FP64 chains.
struct SquareSum {
  hn::Vec<F64> lower[kParts];
  hn::Vec<F64> upper[kParts];
};

HWY_INLINE void AddSquares(const F32x16& x, SquareSum& sum) {
  constexpr F64 kF64;
  const hn::Half<F32> half;
  for (size_t p = 0; p < kParts; ++p) {
    const auto low = hn::PromoteTo(kF64, hn::LowerHalf(half, x.part[p]));
    const auto high = hn::PromoteTo(kF64, hn::UpperHalf(half, x.part[p]));
    sum.lower[p] = hn::MulAdd(low, low, sum.lower[p]);
    sum.upper[p] = hn::MulAdd(high, high, sum.upper[p]);
  }
}

// Lane i joins lane i + 8, then i + 4, i + 2, i + 1.
HWY_INLINE double Total(const SquareSum& sum) {
  constexpr F64 kF64;
  double lanes[kVirtualLanes];
  for (size_t p = 0; p < kParts; ++p) {
    hn::StoreU(sum.lower[p], kF64, lanes + p * kPartLanes);
    hn::StoreU(sum.upper[p], kF64, lanes + p * kPartLanes + kPartLanes / 2);
  }
  for (size_t step = kVirtualLanes / 2; step > 0; step /= 2) {
    for (size_t i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  }
  return lanes[0];
}

GradientStatistics ChunkStatistics(const float* gradient, int64_t count) {
  SquareSum sum;
  for (size_t p = 0; p < kParts; ++p) sum.lower[p] = sum.upper[p] = hn::Zero(F64());
  F32x16 largest = Zero16();
  int64_t finite = 0;
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(kVirtualLanes)) {
    const size_t used = std::min(static_cast<size_t>(count - i), kVirtualLanes);
    const F32x16 x = Load16(gradient + i, used);
    const Mask16 is_finite = IsFinite(x);
    AddSquares(x, sum);
    largest = Max(largest, Select(is_finite, Abs(x), Zero16()));
    finite += static_cast<int64_t>(CountTrue(is_finite) + used - kVirtualLanes);
  }
  return {Total(sum), count - finite, ReduceMax(largest)};
}

GradientStatistics ComputeGradientStatisticsImpl(const ExecContext& ctx, ConstTensor gradient) {
  const int64_t count = gradient.elements();
  const int64_t chunks = (count + kChunkElements - 1) / kChunkElements;
  Workspace::Scope scratch(ctx.workspace);
  GradientStatistics* const parts = scratch.Array<GradientStatistics>(static_cast<size_t>(chunks));
  const float* values = gradient.as<float>();
  ParallelRanges(
      ctx, chunks, kGrainElements / kChunkElements, [=](int64_t begin, int64_t end, int) {
        for (int64_t c = begin; c < end; ++c) {
          const int64_t first = c * kChunkElements;
          parts[c] = ChunkStatistics(values + first, std::min(kChunkElements, count - first));
        }
      });
  GradientStatistics total;
  for (int64_t c = 0; c < chunks; ++c) total = Together(total, parts[c]);
  return total;
}

template <class T>
void AdamWRange(const AdamWTensors& tensors, const AdamWCoefficients& c, int64_t begin,
                int64_t end) {
  const float* gradient = tensors.gradient.as<float>();
  float* master = tensors.master.as<float>();
  float* first = tensors.first_moment.as<float>();
  float* second = tensors.second_moment.as<float>();
  T* weights = tensors.weights.as<T>();
  for (int64_t i = begin; i < end; i += static_cast<int64_t>(kVirtualLanes)) {
    const size_t rest = static_cast<size_t>(end - i);
    const F32x16 g = Load16(gradient + i, rest) * Set16(c.inverse_scale) * Set16(c.clip_factor);
    const F32x16 m = MulAdd(Set16(c.beta1), Load16(first + i, rest), Set16(c.one_minus_beta1) * g);
    const F32x16 v =
        MulAdd(Set16(c.beta2), Load16(second + i, rest), Set16(c.one_minus_beta2) * g * g);
    F32x16 w = Load16(master + i, rest);
    w = NegMulAdd(Set16(c.decay), w, w);
    const F32x16 denominator = MulAdd(Sqrt(v), Set16(c.inverse_correction2), Set16(c.epsilon));
    w = NegMulAdd(Set16(c.step_size), m / denominator, w);
    Store16(m, first + i, rest);
    Store16(v, second + i, rest);
    Store16(w, master + i, rest);
    Store16(w, weights + i, rest);
  }
}

void AdamWImpl(const ExecContext& ctx, const AdamWTensors& tensors, const AdamWOptions& options) {
  AdamWCoefficients coefficients = MakeAdamWCoefficients(options);
  if (!tensors.decision.empty()) {
    const auto& decision = *static_cast<const GradientDecision*>(tensors.decision.data());
    if (decision.skip != 0) return;
    coefficients.inverse_scale = decision.inverse_scale;
    coefficients.clip_factor = decision.clip_factor;
  }
  const int64_t count = tensors.master.elements();
  DispatchFloat(tensors.weights.dtype(), [&]<class T>() {
    ParallelRanges(ctx, (count + 15) / 16, kGrainElements / 16,
                   [&](int64_t begin, int64_t end, int) {
                     AdamWRange<T>(tensors, coefficients, begin * 16, std::min(end * 16, count));
                   });
  });
}

}  // namespace
}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfstep::cpu {

HWY_EXPORT(ComputeGradientStatisticsImpl);
GradientStatistics ComputeGradientStatistics(const ExecContext& ctx, ConstTensor gradient) {
  return HWY_DYNAMIC_DISPATCH(ComputeGradientStatisticsImpl)(ctx, gradient);
}

void MeasureGradient(const ExecContext& ctx, ConstTensor gradient, Tensor statistics) {
  *static_cast<GradientStatistics*>(statistics.data()) =
      cpu::ComputeGradientStatistics(ctx, gradient);
}

void DecideGradient(const ExecContext& /*ctx*/, ConstTensor statistics,
                    const GradientLimits& limits, Tensor decision) {
  const auto* const parts = static_cast<const GradientStatistics*>(statistics.data());
  GradientStatistics total;
  for (int64_t i = 0; i < statistics.dim(0); ++i) total = Together(total, parts[i]);
  *static_cast<GradientDecision*>(decision.data()) =
      MakeGradientDecision(total, std::sqrt(total.squared_norm), limits);
}

HWY_EXPORT(AdamWImpl);
void AdamW(const ExecContext& ctx, const AdamWTensors& tensors, const AdamWOptions& options) {
  HWY_DYNAMIC_DISPATCH(AdamWImpl)(ctx, tensors, options);
}

}  // namespace halfstep::cpu
#endif
