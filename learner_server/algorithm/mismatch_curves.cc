// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/mismatch_curves.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <utility>

#include "kernels/check.h"

namespace halfstep {
namespace {

constexpr size_t kFewestResponses = 10;

int32_t BinOf(float log_prob) {
  const double decades = static_cast<double>(log_prob) / std::numbers::ln10 - kDensityDecades;
  const double bin = std::floor(decades * kBinsPerDecade);
  return static_cast<int32_t>(std::clamp<double>(bin, 0, kDensityBins - 1));
}

double Difference(const LogProbPair& pair, size_t token) {
  return static_cast<double>(pair.learner[token]) - static_cast<double>(pair.behaviour[token]);
}

// The smallest of `sorted` that at least `share` of it do not exceed.
double OrderStatistic(const std::vector<double>& sorted, double share) {
  const double rank = std::ceil(share * static_cast<double>(sorted.size()));
  return sorted[static_cast<size_t>(std::max(1.0, rank)) - 1];
}

}  // namespace

std::vector<DensityBin> ProbabilityDensity(std::span<const LogProbPair> responses) {
  std::map<std::pair<int32_t, int32_t>, int64_t> counts;
  for (const LogProbPair& pair : responses) {
    HALFSTEP_CHECK_EQ(pair.learner.size(), pair.behaviour.size());
    for (size_t t = 0; t < pair.learner.size(); ++t) {
      ++counts[{BinOf(pair.behaviour[t]), BinOf(pair.learner[t])}];
    }
  }
  std::vector<DensityBin> bins;
  for (const auto& [place, tokens] : counts) bins.push_back({place.first, place.second, tokens});
  return bins;
}

std::vector<double> MagnitudeQuantiles(std::span<const LogProbPair> responses,
                                       std::span<const double> shares) {
  std::vector<double> magnitudes;
  for (const LogProbPair& pair : responses) {
    for (size_t t = 0; t < pair.learner.size(); ++t) {
      magnitudes.push_back(std::abs(Difference(pair, t)));
    }
  }
  if (magnitudes.empty()) return std::vector<double>(shares.size(), 0.0);
  std::sort(magnitudes.begin(), magnitudes.end());
  std::vector<double> quantiles;
  for (const double share : shares) quantiles.push_back(OrderStatistic(magnitudes, share));
  return quantiles;
}

std::vector<DriftPoint> SequenceDrift(std::span<const LogProbPair> responses, int64_t points) {
  const size_t fewest = std::min(kFewestResponses, responses.size());
  if (fewest == 0) return {};
  std::vector<size_t> lengths;
  for (const LogProbPair& pair : responses) lengths.push_back(pair.learner.size());
  std::sort(lengths.rbegin(), lengths.rend());
  const auto reach = static_cast<int64_t>(lengths[fewest - 1]);
  const int64_t count = std::min(points, reach);

  std::vector<DriftPoint> drift;
  std::vector<double> sums(responses.size(), 0.0);
  size_t summed = 0;
  for (int64_t i = 1; i <= count; ++i) {
    // Evenly spread, the last one at `reach`.
    const auto tokens = static_cast<size_t>(reach * i / count);
    std::vector<double> reached;
    for (size_t r = 0; r < responses.size(); ++r) {
      if (responses[r].learner.size() < tokens) continue;
      for (size_t t = summed; t < tokens; ++t) sums[r] += Difference(responses[r], t);
      reached.push_back(sums[r]);
    }
    summed = tokens;
    std::sort(reached.begin(), reached.end());
    drift.push_back({.tokens = static_cast<int64_t>(tokens),
                     .responses = static_cast<int64_t>(reached.size()),
                     .low = OrderStatistic(reached, 0.05),
                     .median = OrderStatistic(reached, 0.5),
                     .high = OrderStatistic(reached, 0.95)});
  }
  return drift;
}

}  // namespace halfstep
