// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/mismatch.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/check.h"
#include "learner_server/algorithm/log_ratio.h"

namespace halfstep {

double MismatchBound(Profile profile) { return profile == Profile::kBitwise ? 0 : 1; }

void Covariance::Add(double x, double y) {
  ++count;
  const double dx = x - mean_x;
  const double dy = y - mean_y;
  mean_x += dx / count;
  mean_y += dy / count;
  // Equal pairs give equal sums, and so a correlation of exactly 1.
  const double shrink = (count - 1) / count;
  xx += dx * dx * shrink;
  yy += dy * dy * shrink;
  xy += dx * dy * shrink;
}

void Covariance::Merge(const Covariance& other) {
  if (other.count == 0) return;
  const double dx = other.mean_x - mean_x;
  const double dy = other.mean_y - mean_y;
  const double total = count + other.count;
  const double share = other.count / total;
  mean_x += dx * share;
  mean_y += dy * share;
  xx += other.xx + dx * dx * (count * share);
  yy += other.yy + dy * dy * (count * share);
  xy += other.xy + dx * dy * (count * share);
  count = total;
}

double Covariance::Slope() const { return xx == 0 ? 0 : xy / xx; }

double Covariance::Correlation() const {
  const double scale = std::sqrt(xx * yy);
  return scale == 0 ? 1 : xy / scale;
}

void MismatchStatistics::Add(std::span<const float> learner, std::span<const float> behaviour) {
  HALFSTEP_CHECK_EQ(learner.size(), behaviour.size());
  double sequence = 0;
  double sequence_k3 = 0;
  for (size_t t = 0; t < learner.size(); ++t) {
    const double d = static_cast<double>(learner[t]) - static_cast<double>(behaviour[t]);
    const double pi = std::exp(static_cast<double>(learner[t]));
    const double mu = std::exp(static_cast<double>(behaviour[t]));
    const double prob_diff = std::abs(pi - mu);
    const double k3 = std::expm1(d) - d;
    const double log_weight = ClampLogRatio(d);
    const double weight = std::exp(log_weight);
    const double capped = std::clamp(weight, 1 / kWeightCap, kWeightCap);
    sequence += d;
    sequence_k3 += k3;
    squares_ += d * d;
    k3_ += k3;
    chi2_token_ += std::expm1(2 * log_weight);
    weight_sum_ += capped;
    weight_squares_ += capped * capped;
    above_cap_ += weight > kWeightCap;
    below_cap_ += weight < 1 / kWeightCap;
    probabilities_.Add(mu, pi);
    max_ = std::max(max_, std::abs(d));
    prob_diff_sum_ += prob_diff;
    prob_diff_max_ = std::max(prob_diff_max_, prob_diff);
    bit_equal_ += std::bit_cast<uint32_t>(learner[t]) == std::bit_cast<uint32_t>(behaviour[t]);
    magnitudes_.push_back(static_cast<float>(std::abs(d)));
  }
  sequence_sum_ += sequence;
  sequence_abs_sum_ += std::abs(sequence);
  sequence_k3_ += sequence_k3;
  chi2_sequence_ += std::expm1(2 * ClampLogRatio(sequence));
  if (!learner.empty()) {
    const double tokens = static_cast<double>(learner.size());
    perplexity_ratio_ += std::exp(ClampLogRatio(-sequence / tokens));
    lengths_.Add(tokens, sequence);
  }
  ++sequences_;
}

void MismatchStatistics::Merge(const MismatchStatistics& other) {
  magnitudes_.insert(magnitudes_.end(), other.magnitudes_.begin(), other.magnitudes_.end());
  sequences_ += other.sequences_;
  bit_equal_ += other.bit_equal_;
  squares_ += other.squares_;
  k3_ += other.k3_;
  max_ = std::max(max_, other.max_);
  prob_diff_sum_ += other.prob_diff_sum_;
  prob_diff_max_ = std::max(prob_diff_max_, other.prob_diff_max_);
  sequence_sum_ += other.sequence_sum_;
  sequence_abs_sum_ += other.sequence_abs_sum_;
  sequence_k3_ += other.sequence_k3_;
  perplexity_ratio_ += other.perplexity_ratio_;
  chi2_token_ += other.chi2_token_;
  chi2_sequence_ += other.chi2_sequence_;
  weight_sum_ += other.weight_sum_;
  weight_squares_ += other.weight_squares_;
  above_cap_ += other.above_cap_;
  below_cap_ += other.below_cap_;
  probabilities_.Merge(other.probabilities_);
  lengths_.Merge(other.lengths_);
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
  metrics.sequence_kl = sequence_k3_ / sequences;
  metrics.slope_per_1000_tokens = 1000 * lengths_.Slope();
  metrics.prob_correlation = probabilities_.Correlation();
  metrics.perplexity_ratio = perplexity_ratio_ / lengths_.count;
  metrics.chi2_token = chi2_token_ / tokens;
  metrics.chi2_sequence = chi2_sequence_ / sequences;
  metrics.effective_sample_size = weight_sum_ * weight_sum_ / (tokens * weight_squares_);
  metrics.weights_above_cap = static_cast<double>(above_cap_) / tokens;
  metrics.weights_below_cap = static_cast<double>(below_cap_) / tokens;
  metrics.bit_equal_share = static_cast<double>(bit_equal_) / tokens;
  return metrics;
}

}  // namespace halfstep
