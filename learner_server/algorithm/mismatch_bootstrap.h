// SPDX-License-Identifier: Apache-2.0
// How sure mismatch metrics are: percentile bootstrap over whole responses (Efron, 1979), because
// the tokens of one response are not independent.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "learner_server/algorithm/mismatch.h"

namespace halfstep {

// A figure of MismatchMetrics, or one made of them.
struct MismatchMetric {
  const char* name;  // as in metrics.jsonl, without its prefix
  double (*of)(const MismatchMetrics&);
  // Whether it is 0 where both sides agree, so that it can be compared as a multiple.
  bool vanishes;
};

// Every metric, in the order of MismatchMetrics; counts are not among them.
std::span<const MismatchMetric> MismatchMetricList();

// Root mean square of d: sqrt(2 k2).
double RmsOf(const MismatchMetrics& metrics);

struct Interval {
  double value = 0;  // of the responses as they are
  double low = 0;
  double high = 0;
};

struct BootstrapOptions {
  int64_t resamples = 1000;
  uint64_t seed = 1;
};

// The share of resamples that an interval holds.
inline constexpr double kCoverage = 0.95;

// `count` numbers below `count`, drawn with replacement; a function of the arguments alone
// (Philox), so that studies of equally many responses to the same prompts are resampled alike.
std::vector<uint32_t> DrawResponses(uint32_t count, uint64_t seed, uint32_t resample);

// The middle kCoverage of `resampled`, with linear interpolation between order statistics; `value`
// alone where there is none.
Interval PercentileInterval(double value, std::vector<double> resampled);

struct MismatchEstimate {
  MismatchMetrics metrics;
  std::vector<MismatchMetrics> resampled;

  Interval Of(double (*metric)(const MismatchMetrics&)) const;
  // Of this estimate's metric to that of `base`, resample by resample; nothing where `base` has a
  // zero. Both have equally many resamples.
  std::optional<Interval> RatioTo(const MismatchEstimate& base,
                                  double (*metric)(const MismatchMetrics&)) const;
};

// Element i of `responses` holds response i alone.
MismatchEstimate EstimateMismatch(std::span<const MismatchStatistics> responses,
                                  const BootstrapOptions& options);

}  // namespace halfstep
