// SPDX-License-Identifier: Apache-2.0
// The one row function behind every log-prob: rollout and learner get equal bits from equal logits.

#if defined(HALFSTEP_KERNELS_CPU_LOG_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFSTEP_KERNELS_CPU_LOG_SOFTMAX_INL_H_
#undef HALFSTEP_KERNELS_CPU_LOG_SOFTMAX_INL_H_
#else
#define HALFSTEP_KERNELS_CPU_LOG_SOFTMAX_INL_H_
#endif

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

// Of z = logits * inverse_temperature over one row.
struct LogSoftmax {
  float inverse_temperature;
  float max;       // of z
  float log_sum;   // log of sum exp(z - max)
  float mean_gap;  // sum of p (z - max)
  bool finite;     // false: some logit is infinite or NaN, and nothing else here means anything

  float LogProb(float logit) const {
    if (!finite) return std::numeric_limits<float>::quiet_NaN();
    return (logit * inverse_temperature - max) - log_sum;
  }
  float LogSumExp() const {
    return finite ? max + log_sum : std::numeric_limits<float>::quiet_NaN();
  }
  float Entropy() const {
    return finite ? log_sum - mean_gap : std::numeric_limits<float>::quiet_NaN();
  }
};

// 16 values from `i` on of a row of `count`; lanes past the end get `beyond`.
HWY_INLINE F32x16 LoadRow16(const float* row, int64_t i, int64_t count, float beyond) {
  if (i + 16 <= count) return Load16(row + i);
  const auto used = static_cast<size_t>(count - i);
  return Select(FirstLanes(used), Load16(row + i, used), Set16(beyond));
}

inline LogSoftmax ReduceLogits(const float* logits, int64_t vocab, float inverse_temperature) {
  LogSoftmax row{inverse_temperature, 0, 0, 0, true};
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  F32x16 largest = Set16(kLowest);
  F32x16 poison = Zero16();  // becomes NaN where a logit is not finite
  for (int64_t i = 0; i < vocab; i += 16) {
    const F32x16 v = LoadRow16(logits, i, vocab, kLowest);
    largest = Max(v, largest);
    poison = MulAdd(v, Zero16(), poison);
  }
  const F32x16 scale = Set16(inverse_temperature);
  row.max = ReduceMax(largest) * inverse_temperature;
  if (!AllTrue(IsFinite(poison)) || !AllTrue(IsFinite(Set16(row.max)))) {
    row.finite = false;
    return row;
  }
  const F32x16 max = Set16(row.max);
  F32x16 sum = Zero16(), weighted = Zero16();
  for (int64_t i = 0; i < vocab; i += 16) {
    const F32x16 gap = LoadRow16(logits, i, vocab, 0.0f) * scale - max;
    const F32x16 e = i + 16 <= vocab
                         ? Exp(gap)
                         : Select(FirstLanes(static_cast<size_t>(vocab - i)), Exp(gap), Zero16());
    sum = sum + e;
    weighted = MulAdd(e, gap, weighted);
  }
  const float total = ReduceSum(sum);
  row.log_sum = LogOne(total);
  row.mean_gap = ReduceSum(weighted) / total;
  return row;
}

}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
