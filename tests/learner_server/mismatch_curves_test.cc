// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/mismatch_curves.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

struct Responses {
  std::vector<std::vector<float>> learner, behaviour;

  // d of each token, behaviour log-prob -1.
  void Add(const std::vector<float>& d) {
    behaviour.emplace_back(d.size(), -1.0f);
    learner.emplace_back();
    for (const float value : d) learner.back().push_back(value - 1);
  }
  std::vector<LogProbPair> pairs() const {
    std::vector<LogProbPair> pairs;
    for (size_t i = 0; i < learner.size(); ++i) pairs.push_back({learner[i], behaviour[i]});
    return pairs;
  }
};

TEST(MismatchCurvesTest, DensityCountsTokensByDecade) {
  Responses responses;
  const auto log = [](double p) { return static_cast<float>(std::log(p)); };
  responses.behaviour = {{0.0f, log(0.95), log(0.05)}, {-100.0f}};
  responses.learner = {{0.0f, log(0.85), log(0.0011)}, {log(0.5)}};
  const std::vector<DensityBin> bins = ProbabilityDensity(responses.pairs());
  ASSERT_EQ(bins.size(), 3u);
  // Too small for the histogram: in its first bin.
  EXPECT_EQ(bins[0].mu, 0);
  EXPECT_EQ(bins[0].pi, 56);
  EXPECT_EQ(bins[0].tokens, 1);
  EXPECT_EQ(bins[1].mu, 46);
  EXPECT_EQ(bins[1].pi, 30);
  EXPECT_EQ(bins[1].tokens, 1);
  // Of 10^-0.1 = 0.79 and more, 1 included.
  EXPECT_EQ(bins[2].mu, 59);
  EXPECT_EQ(bins[2].pi, 59);
  EXPECT_EQ(bins[2].tokens, 2);
}

TEST(MismatchCurvesTest, QuantilesAreOrderStatisticsOfMagnitudes) {
  Responses responses;
  responses.Add({0.5f, -0.25f});
  responses.Add({0, -1});
  const std::vector<double> shares = {0.25, 0.5, 0.51, 1};
  EXPECT_THAT(MagnitudeQuantiles(responses.pairs(), shares), ElementsAre(0, 0.25, 0.5, 1));
  EXPECT_THAT(MagnitudeQuantiles({}, shares), ElementsAre(0, 0, 0, 0));
}

TEST(MismatchCurvesTest, DriftAddsUpAlongResponses) {
  Responses responses;
  responses.Add({0.5f, 0.5f, 0.5f, 0.5f});
  responses.Add({-0.25f, 0, 0.25f, 1});
  responses.Add({0, 1, 1, 1});
  const std::vector<DriftPoint> drift = SequenceDrift(responses.pairs(), 2);
  ASSERT_EQ(drift.size(), 2u);
  EXPECT_EQ(drift[0].tokens, 2);
  EXPECT_EQ(drift[0].low, -0.25);
  EXPECT_EQ(drift[0].median, 1);
  EXPECT_EQ(drift[0].high, 1);
  EXPECT_EQ(drift[1].tokens, 4);
  EXPECT_EQ(drift[1].responses, 3);
  EXPECT_EQ(drift[1].low, 1);
  EXPECT_EQ(drift[1].median, 2);
  EXPECT_EQ(drift[1].high, 3);
  EXPECT_THAT(SequenceDrift({}, 2), IsEmpty());
}

TEST(MismatchCurvesTest, DriftEndsWhereTooFewResponsesAreLeft) {
  Responses responses;
  for (int i = 1; i <= 12; ++i) responses.Add(std::vector<float>(i, 0.25f));
  const std::vector<DriftPoint> drift = SequenceDrift(responses.pairs(), 100);
  ASSERT_EQ(drift.size(), 3u);
  EXPECT_EQ(drift[0].responses, 12);
  EXPECT_EQ(drift[2].tokens, 3);
  EXPECT_EQ(drift[2].responses, 10);
  EXPECT_EQ(drift[2].median, 0.75);
}

}  // namespace
}  // namespace halfstep
