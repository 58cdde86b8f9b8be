// SPDX-License-Identifier: Apache-2.0
// The two basic objectives on five tokens, without a model.
#include "learner_server/algorithm/policy_loss.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>

namespace halfstep {
namespace {

constexpr PolicyLossOptions kPg{Objective::kPolicyGradient};
constexpr PolicyLossOptions kClip{Objective::kPpoClip, 0.2, 0.28};

constexpr std::array<float, 5> kOld{-1.0f, -0.5f, -2.0f, -0.1f, -3.0f};
// Ratios about 1.05, 0.61, 1.65, 1, 0.9.
constexpr std::array<float, 5> kNew{-0.95f, -1.0f, -1.5f, -0.1f, -3.1f};

struct Loss {
  std::array<float, 5> derivative{};
  PolicyLossStatistics statistics;
};

Loss Evaluate(const PolicyLossOptions& options, const std::array<float, 5>& log_probs,
              double advantage, double weight = 0.25) {
  Loss result;
  PolicyLoss(options, {log_probs, kOld, advantage, weight}, result.derivative, &result.statistics);
  return result;
}

TEST(PolicyLossTest, PolicyGradientIsMinusAdvantageTimesLogProb) {
  const Loss result = Evaluate(kPg, kNew, 2.0);
  EXPECT_THAT(result.derivative, testing::Each(-0.5f));
  EXPECT_NEAR(result.statistics.loss, -2.0 * 0.25 * (-0.95 - 1.0 - 1.5 - 0.1 - 3.1), 1e-6);
  EXPECT_EQ(result.statistics.tokens, 5);
}

TEST(PolicyLossTest, PolicyGradientNeedsNoOldLogProbs) {
  std::array<float, 5> derivative;
  PolicyLossStatistics statistics;
  PolicyLoss(kPg, {kNew, {}, 1.0, 1.0}, derivative, &statistics);
  EXPECT_THAT(derivative, testing::Each(-1.0f));
}

TEST(PolicyLossTest, ClipCutsHighRatiosOfGoodResponses) {
  const Loss result = Evaluate(kClip, kNew, 1.0);
  EXPECT_EQ(result.statistics.clipped_high, 1);
  EXPECT_EQ(result.statistics.clipped_low, 0);
  EXPECT_EQ(result.derivative[2], 0);                               // ratio 1.65
  EXPECT_NEAR(result.derivative[1], -0.25 * std::exp(-0.5), 1e-6);  // low ratios keep theirs
}

TEST(PolicyLossTest, ClipCutsLowRatiosOfBadResponses) {
  const Loss result = Evaluate(kClip, kNew, -1.0);
  EXPECT_EQ(result.statistics.clipped_low, 1);
  EXPECT_EQ(result.statistics.clipped_high, 0);
  EXPECT_EQ(result.derivative[1], 0);  // ratio 0.61
  EXPECT_NEAR(result.derivative[2], 0.25 * std::exp(0.5), 1e-6);
}

TEST(PolicyLossTest, ClipAtTheOldPolicyIsThePolicyGradient) {
  const Loss result = Evaluate(kClip, kOld, 0.7);
  EXPECT_EQ(result.derivative, Evaluate(kPg, kOld, 0.7).derivative);
  EXPECT_EQ(result.statistics.clipped_low + result.statistics.clipped_high, 0);
  EXPECT_EQ(result.statistics.ratio_sum, 5);
}

TEST(PolicyLossTest, ZeroAdvantageGivesZeros) {
  for (const PolicyLossOptions& options : {kPg, kClip}) {
    const Loss result = Evaluate(options, kNew, 0.0);
    EXPECT_THAT(result.derivative, testing::Each(0.0f));
    EXPECT_EQ(result.statistics.loss, 0);
    EXPECT_EQ(result.statistics.clipped_low + result.statistics.clipped_high, 0);
  }
}

TEST(PolicyLossTest, ExtremeRatiosStayFinite) {
  std::array<float, 5> far = kOld;
  far[0] = -400;
  far[1] = kOld[1] + 100;
  for (const double advantage : {1.0, -1.0}) {
    const Loss result = Evaluate(kClip, far, advantage);
    EXPECT_TRUE(std::isfinite(result.statistics.loss));
    for (const float derivative : result.derivative) EXPECT_TRUE(std::isfinite(derivative));
  }
  // Beyond the clamp of the log-ratio nothing is left to follow.
  EXPECT_EQ(Evaluate(kClip, far, -1.0).derivative[1], 0);
}

TEST(PolicyLossTest, DerivativesMatchFiniteDifferences) {
  for (const PolicyLossOptions& options : {kPg, kClip}) {
    for (const double advantage : {1.3, -0.8}) {
      const Loss at = Evaluate(options, kNew, advantage);
      for (size_t t = 0; t < kNew.size(); ++t) {
        const float step = 1.0f / 1024;
        std::array<float, 5> up = kNew, down = kNew;
        up[t] += step;
        down[t] -= step;
        const double width = static_cast<double>(up[t]) - down[t];
        const double slope = (Evaluate(options, up, advantage).statistics.loss -
                              Evaluate(options, down, advantage).statistics.loss) /
                             width;
        EXPECT_NEAR(at.derivative[t], slope, 1e-5)
            << Name(options.objective) << " advantage " << advantage << " token " << t;
      }
    }
  }
}

}  // namespace
}  // namespace halfstep
