// SPDX-License-Identifier: Apache-2.0
// Bootstrap intervals of mismatch metrics against cases that can be worked out.
#include "learner_server/algorithm/mismatch_bootstrap.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

namespace halfstep {
namespace {

// A response of `tokens` tokens, each with this d.
MismatchStatistics Response(float d, size_t tokens = 1) {
  MismatchStatistics statistics;
  statistics.Add(std::vector<float>(tokens, d - 1), std::vector<float>(tokens, -1.0f));
  return statistics;
}

double AbsMean(const MismatchMetrics& metrics) { return metrics.abs_mean; }

TEST(MismatchBootstrapTest, TheIntervalOfAShareIsThatOfTheBinomial) {
  // Half of 100 responses have d = 1: a resample's mean is Binomial(100, 1/2) / 100, whose 2.5 %
  // and 97.5 % points are 0.40 and 0.60. 4000 resamples know them to one step.
  std::vector<MismatchStatistics> responses;
  for (int i = 0; i < 100; ++i) responses.push_back(Response(i % 2 == 0 ? 1.0f : 0.0f));
  const Interval interval = EstimateMismatch(responses, {.resamples = 4000}).Of(AbsMean);
  EXPECT_DOUBLE_EQ(interval.value, 0.5);
  EXPECT_NEAR(interval.low, 0.40, 0.0101);
  EXPECT_NEAR(interval.high, 0.60, 0.0101);
}

TEST(MismatchBootstrapTest, WholeResponsesAreResampled) {
  // 4 responses of 1000 tokens know as little as 4 tokens would: all four drawn from one half has
  // probability 1/16 at each end, more than the 2.5 % that are cut.
  std::vector<MismatchStatistics> responses;
  for (int i = 0; i < 4; ++i) responses.push_back(Response(i < 2 ? 1.0f : 0.0f, 1000));
  const Interval interval = EstimateMismatch(responses, {}).Of(AbsMean);
  EXPECT_DOUBLE_EQ(interval.value, 0.5);
  EXPECT_EQ(interval.low, 0);
  EXPECT_EQ(interval.high, 1);
}

TEST(MismatchBootstrapTest, WhatDoesNotVaryHasNoWidth) {
  const std::vector<MismatchStatistics> responses(7, Response(0.25f, 3));
  const MismatchEstimate estimate = EstimateMismatch(responses, {.resamples = 50});
  EXPECT_EQ(estimate.resampled.size(), 50u);
  const Interval interval = estimate.Of(AbsMean);
  EXPECT_EQ(interval.value, 0.25);
  EXPECT_EQ(interval.low, 0.25);
  EXPECT_EQ(interval.high, 0.25);
  EXPECT_DOUBLE_EQ(RmsOf(estimate.metrics), 0.25);
}

TEST(MismatchBootstrapTest, RatiosAreOfTheSameResponses) {
  // Each response of one cell is off by eight times as much as its partner, so the ratio is certain
  // although both means are not.
  std::vector<MismatchStatistics> coarse, fine;
  for (int i = 1; i <= 20; ++i) {
    coarse.push_back(Response(static_cast<float>(i) / 8));
    fine.push_back(Response(static_cast<float>(i) / 64));
  }
  const MismatchEstimate base = EstimateMismatch(coarse, {.resamples = 200});
  const MismatchEstimate cell = EstimateMismatch(fine, {.resamples = 200});
  EXPECT_GT(base.Of(AbsMean).high, 1.1 * base.Of(AbsMean).low);
  const auto ratio = cell.RatioTo(base, AbsMean);
  ASSERT_TRUE(ratio.has_value());
  EXPECT_NEAR(ratio->value, 0.125, 1e-6);
  EXPECT_NEAR(ratio->low, 0.125, 1e-6);
  EXPECT_NEAR(ratio->high, 0.125, 1e-6);
}

TEST(MismatchBootstrapTest, NothingIsAMultipleOfZero) {
  const std::vector<MismatchStatistics> equal(3, Response(0));
  const std::vector<MismatchStatistics> unequal(3, Response(0.5f));
  const BootstrapOptions options{.resamples = 10};
  const MismatchEstimate zero = EstimateMismatch(equal, options);
  EXPECT_FALSE(EstimateMismatch(unequal, options).RatioTo(zero, AbsMean).has_value());
  // Nor of what is zero in one of the resamples.
  const std::vector<MismatchStatistics> mixed = {Response(0.5f), Response(0)};
  const MismatchEstimate sometimes = EstimateMismatch(mixed, {.resamples = 100});
  EXPECT_FALSE(sometimes.RatioTo(sometimes, AbsMean).has_value());
}

TEST(MismatchBootstrapTest, DrawsDependOnTheirKeyAlone) {
  const std::vector<uint32_t> drawn = DrawResponses(1000, 7, 3);
  EXPECT_EQ(drawn, DrawResponses(1000, 7, 3));
  EXPECT_NE(drawn, DrawResponses(1000, 8, 3));
  EXPECT_NE(drawn, DrawResponses(1000, 7, 4));
  EXPECT_LT(*std::max_element(drawn.begin(), drawn.end()), 1000u);
  // With replacement, 1 - 1/e of them are drawn: 632 with a standard deviation of about 10.
  EXPECT_NEAR(static_cast<double>(std::set<uint32_t>(drawn.begin(), drawn.end()).size()), 632, 50);
}

TEST(MismatchBootstrapTest, IntervalsInterpolateBetweenOrderStatistics) {
  std::vector<double> values;
  for (int i = 100; i >= 0; --i) values.push_back(i);
  const Interval interval = PercentileInterval(3, values);
  EXPECT_EQ(interval.value, 3);
  EXPECT_NEAR(interval.low, 2.5, 1e-9);
  EXPECT_NEAR(interval.high, 97.5, 1e-9);
  EXPECT_EQ(PercentileInterval(3, {}).low, 3);
}

TEST(MismatchBootstrapTest, EveryMetricIsListedOnceUnderItsName) {
  std::set<std::string> names;
  const MismatchMetrics agreement;
  for (const MismatchMetric& metric : MismatchMetricList()) {
    EXPECT_TRUE(names.insert(metric.name).second) << metric.name;
    EXPECT_EQ(metric.of(agreement), metric.vanishes ? 0 : 1) << metric.name;
  }
  // All members of MismatchMetrics, which are of 8 bytes each, but the two counts.
  EXPECT_EQ(names.size(), sizeof(MismatchMetrics) / sizeof(double) - 2);
}

}  // namespace
}  // namespace halfstep
