// SPDX-License-Identifier: Apache-2.0
// The figures that show where a mismatch is: pairs of probabilities, quantiles of |d|, and how
// d = log pi - log mu adds up along a response.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace halfstep {

// One response's log-probs, of equal length.
struct LogProbPair {
  std::span<const float> learner;
  std::span<const float> behaviour;
};

// A square of the histogram over (log10 mu, log10 pi).
struct DensityBin {
  int32_t mu = 0;  // from 0 at 10^kDensityDecades up
  int32_t pi = 0;
  int64_t tokens = 0;
};

inline constexpr int32_t kDensityDecades = -6;  // smaller probabilities count as this small
inline constexpr int32_t kBinsPerDecade = 10;
inline constexpr int32_t kDensityBins = -kDensityDecades * kBinsPerDecade;  // along each side

// The bins that are not empty, ascending in mu, then pi.
std::vector<DensityBin> ProbabilityDensity(std::span<const LogProbPair> responses);

// The value of |d| that a share of the tokens do not exceed (the smallest such order statistic);
// one for each of `shares`, which are in (0, 1]; zeros without tokens.
std::vector<double> MagnitudeQuantiles(std::span<const LogProbPair> responses,
                                       std::span<const double> shares);

// Sum of d over the first `tokens` tokens, of the responses that are as long.
struct DriftPoint {
  int64_t tokens = 0;
  int64_t responses = 0;
  double low = 0;  // 5 %
  double median = 0;
  double high = 0;  // 95 %
};

// From 1 token on, at most `points` of them, as far as 10 responses reach (or all, of fewer).
std::vector<DriftPoint> SequenceDrift(std::span<const LogProbPair> responses, int64_t points);

}  // namespace halfstep
