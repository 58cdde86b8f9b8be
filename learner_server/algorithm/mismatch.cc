// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/mismatch.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/check.h"

namespace halfstep {

double MismatchBound(Profile profile) { return profile == Profile::kBitwise ? 0 : 1; }

void MismatchStatistics::Add(std::span<const float> learner, std::span<const float> behaviour) {
  HALFSTEP_CHECK_EQ(learner.size(), behaviour.size());
  double sequence = 0;
  for (size_t t = 0; t < learner.size(); ++t) {
    const double d = static_cast<double>(learner[t]) - static_cast<double>(behaviour[t]);
    const double prob_diff = std::abs(std::exp(static_cast<double>(learner[t])) -
                                      std::exp(static_cast<double>(behaviour[t])));
    sequence += d;
    squares_ += d * d;
    k3_ += std::expm1(d) - d;
    max_ = std::max(max_, std::abs(d));
    prob_diff_sum_ += prob_diff;
    prob_diff_max_ = std::max(prob_diff_max_, prob_diff);
    bit_equal_ += std::bit_cast<uint32_t>(learner[t]) == std::bit_cast<uint32_t>(behaviour[t]);
    magnitudes_.push_back(static_cast<float>(std::abs(d)));
  }
  sequence_sum_ += sequence;
  sequence_abs_sum_ += std::abs(sequence);
  ++sequences_;
}

MismatchMetrics MismatchStatistics::Summarize() const {
  MismatchMetrics metrics;
  metrics.tokens_compared = static_cast<int64_t>(magnitudes_.size());
  metrics.sequences = sequences_;
  if (magnitudes_.empty()) return metrics;
  const double tokens = static_cast<double>(magnitudes_.size());
  const double sequences = static_cast<double>(sequences_);
  std::vector<float> sorted = magnitudes_;
  const size_t rank = static_cast<size_t>(std::ceil(0.99 * tokens)) - 1;
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<int64_t>(rank), sorted.end());
  double magnitude_sum = 0;
  for (const float magnitude : magnitudes_) magnitude_sum += magnitude;
  metrics.k1 = sequence_sum_ == 0 ? 0 : -sequence_sum_ / tokens;
  metrics.k2 = squares_ / tokens / 2;
  metrics.k3 = k3_ / tokens;
  metrics.abs_mean = magnitude_sum / tokens;
  metrics.abs_p99 = sorted[rank];
  metrics.abs_max = max_;
  metrics.prob_diff_mean = prob_diff_sum_ / tokens;
  metrics.prob_diff_max = prob_diff_max_;
  metrics.sequence_sum_mean = sequence_sum_ / sequences;
  metrics.sequence_abs_sum_mean = sequence_abs_sum_ / sequences;
  metrics.bit_equal_share = static_cast<double>(bit_equal_) / tokens;
  return metrics;
}

}  // namespace halfstep
