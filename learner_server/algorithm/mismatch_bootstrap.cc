// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/mismatch_bootstrap.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/philox.h"

namespace halfstep {
namespace {

using Metrics = MismatchMetrics;

template <double Metrics::*kMember>
double Get(const Metrics& metrics) {
  return metrics.*kMember;
}

constexpr MismatchMetric kMetrics[] = {
    {"k1", Get<&Metrics::k1>, true},
    {"k2", Get<&Metrics::k2>, true},
    {"k3", Get<&Metrics::k3>, true},
    {"abs_mean", Get<&Metrics::abs_mean>, true},
    {"abs_p99", Get<&Metrics::abs_p99>, true},
    {"abs_max", Get<&Metrics::abs_max>, true},
    {"prob_diff_mean", Get<&Metrics::prob_diff_mean>, true},
    {"prob_diff_max", Get<&Metrics::prob_diff_max>, true},
    {"sequence_sum_mean", Get<&Metrics::sequence_sum_mean>, true},
    {"sequence_abs_sum_mean", Get<&Metrics::sequence_abs_sum_mean>, true},
    {"sequence_kl", Get<&Metrics::sequence_kl>, true},
    {"slope_per_1000_tokens", Get<&Metrics::slope_per_1000_tokens>, true},
    {"prob_correlation", Get<&Metrics::prob_correlation>, false},
    {"perplexity_ratio", Get<&Metrics::perplexity_ratio>, false},
    {"chi2_token", Get<&Metrics::chi2_token>, true},
    {"chi2_sequence", Get<&Metrics::chi2_sequence>, true},
    {"effective_sample_size", Get<&Metrics::effective_sample_size>, false},
    {"weights_above_cap", Get<&Metrics::weights_above_cap>, true},
    {"weights_below_cap", Get<&Metrics::weights_below_cap>, true},
    {"bit_equal_share", Get<&Metrics::bit_equal_share>, false},
};

// Of sorted values, `share` in [0, 1].
double QuantileOf(const std::vector<double>& sorted, double share) {
  const double place = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above], place - static_cast<double>(below));
}

}  // namespace

std::span<const MismatchMetric> MismatchMetricList() { return kMetrics; }

double RmsOf(const MismatchMetrics& metrics) { return std::sqrt(2 * metrics.k2); }

std::vector<uint32_t> DrawResponses(uint32_t count, uint64_t seed, uint32_t resample) {
  const PhiloxKey key{{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}};
  std::vector<uint32_t> drawn(count);
  for (uint32_t i = 0; i < count; ++i) {
    // 64 random bits, so that no number is favoured by more than 2^-32.
    const auto word = Philox4x32({{i / 2, resample, 0, 0}}, key);
    const uint64_t bits = uint64_t{word[i % 2 * 2]} << 32 | word[i % 2 * 2 + 1];
    drawn[i] = static_cast<uint32_t>(bits % count);
  }
  return drawn;
}

Interval PercentileInterval(double value, std::vector<double> resampled) {
  if (resampled.empty()) return {value, value, value};
  std::sort(resampled.begin(), resampled.end());
  return {value, QuantileOf(resampled, (1 - kCoverage) / 2),
          QuantileOf(resampled, (1 + kCoverage) / 2)};
}

Interval MismatchEstimate::Of(double (*metric)(const MismatchMetrics&)) const {
  std::vector<double> values;
  values.reserve(resampled.size());
  for (const MismatchMetrics& one : resampled) values.push_back(metric(one));
  return PercentileInterval(metric(metrics), std::move(values));
}

std::optional<Interval> MismatchEstimate::RatioTo(const MismatchEstimate& base,
                                                  double (*metric)(const MismatchMetrics&)) const {
  HALFSTEP_CHECK_EQ(resampled.size(), base.resampled.size());
  if (metric(base.metrics) == 0) return std::nullopt;
  std::vector<double> values;
  values.reserve(resampled.size());
  for (size_t i = 0; i < resampled.size(); ++i) {
    const double divisor = metric(base.resampled[i]);
    if (divisor == 0) return std::nullopt;
    values.push_back(metric(resampled[i]) / divisor);
  }
  return PercentileInterval(metric(metrics) / metric(base.metrics), std::move(values));
}

MismatchEstimate EstimateMismatch(std::span<const MismatchStatistics> responses,
                                  const BootstrapOptions& options) {
  MismatchEstimate estimate;
  MismatchStatistics all;
  for (const MismatchStatistics& one : responses) all.Merge(one);
  estimate.metrics = all.Summarize();
  const auto count = static_cast<uint32_t>(responses.size());
  for (int64_t i = 0; i < options.resamples; ++i) {
    MismatchStatistics resample;
    for (const uint32_t response : DrawResponses(count, options.seed, static_cast<uint32_t>(i))) {
      resample.Merge(responses[response]);
    }
    estimate.resampled.push_back(resample.Summarize());
  }
  return estimate;
}

}  // namespace halfstep
