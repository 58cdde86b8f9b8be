// SPDX-License-Identifier: Apache-2.0
// Every correction against its formula in doubles.
#include "learner_server/algorithm/correction.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace halfstep {
namespace {

using testing::Each;
using testing::ElementsAre;

constexpr CorrectionKind kKinds[] = {CorrectionKind::kNone,        CorrectionKind::kTokenIs,
                                     CorrectionKind::kTokenTis,    CorrectionKind::kSequenceIs,
                                     CorrectionKind::kSequenceTis, CorrectionKind::kSequenceMis,
                                     CorrectionKind::kIcePop,      CorrectionKind::kGeometricMask,
                                     CorrectionKind::kK3Mask,      CorrectionKind::kVeto};

struct Response {
  std::vector<float> learner;
  std::vector<float> behaviour;
};

Response FromLogRatios(const std::vector<float>& d) {
  Response response;
  for (const float each : d) {
    response.learner.push_back(-60.0f + each);
    response.behaviour.push_back(-60.0f);
  }
  return response;
}

std::vector<double> WeightsOf(const CorrectionOptions& options, const Response& response) {
  std::vector<double> weights(response.learner.size(), -1.0);
  CorrectionWeights(options, response.learner, response.behaviour, weights);
  return weights;
}

std::vector<Response> RandomResponses(double spread) {
  std::mt19937 random(11);
  std::uniform_real_distribution<float> log_prob(-4.0f, -0.05f);
  std::normal_distribution<float> noise(0, static_cast<float>(spread));
  std::vector<Response> responses;
  for (const int length : {1, 2, 5, 9, 33, 4, 6, 1}) {
    Response& response = responses.emplace_back();
    for (int t = 0; t < length; ++t) {
      response.behaviour.push_back(log_prob(random));
      response.learner.push_back(response.behaviour.back() + noise(random));
    }
  }
  return responses;
}

double Clip(double value) { return std::min(std::max(value, -20.0), 20.0); }

double Reference(const CorrectionOptions& options, const Response& response, size_t token) {
  const double tokens = static_cast<double>(response.learner.size());
  double sum = 0, mean = 0, k3 = 0, smallest = INFINITY;
  for (size_t t = 0; t < response.learner.size(); ++t) {
    const double d = static_cast<double>(response.learner[t]) - response.behaviour[t];
    sum += d;
    mean += Clip(d) / tokens;
    k3 += (std::exp(Clip(d)) - 1 - Clip(d)) / tokens;
    smallest = std::min(smallest, std::exp(d));
  }
  const double ratio =
      std::exp(Clip(static_cast<double>(response.learner[token]) - response.behaviour[token]));
  const double product = std::exp(Clip(sum));
  switch (options.kind) {
    case CorrectionKind::kNone:
      return 1;
    case CorrectionKind::kTokenIs:
      return ratio;
    case CorrectionKind::kTokenTis:
      return ratio < options.cap ? ratio : options.cap;
    case CorrectionKind::kSequenceIs:
      return product;
    case CorrectionKind::kSequenceTis:
      return product < options.cap ? product : options.cap;
    case CorrectionKind::kSequenceMis:
      return product > options.cap ? 0 : product;
    case CorrectionKind::kIcePop:
      return ratio < options.low || ratio > options.high ? 0 : ratio;
    case CorrectionKind::kGeometricMask:
      return std::exp(mean) < options.low || std::exp(mean) > options.high ? 0 : 1;
    case CorrectionKind::kK3Mask:
      return k3 > options.k3_limit ? 0 : 1;
    case CorrectionKind::kVeto:
      return smallest < options.min_ratio ? 0 : 1;
  }
  return 0;
}

class CorrectionTest : public testing::TestWithParam<CorrectionKind> {};

TEST_P(CorrectionTest, WeightsFollowTheFormula) {
  CorrectionOptions options = DefaultCorrection(GetParam());
  for (const double spread : {0.0005, 0.05, 0.8, 6.0}) {
    for (const Response& response : RandomResponses(spread)) {
      const std::vector<double> weights = WeightsOf(options, response);
      for (size_t t = 0; t < weights.size(); ++t) {
        const double want = Reference(options, response, t);
        EXPECT_NEAR(weights[t], want, 1e-12 * (1 + want))
            << Name(GetParam()) << " spread " << spread << " token " << t;
      }
    }
  }
}

TEST_P(CorrectionTest, EqualPoliciesGiveExactOnes) {
  for (const std::vector<float>& d : {std::vector<float>{0}, std::vector<float>(7, 0.0f)}) {
    EXPECT_THAT(WeightsOf(DefaultCorrection(GetParam()), FromLogRatios(d)), Each(1.0))
        << Name(GetParam());
  }
}

TEST_P(CorrectionTest, ExtremeRatiosStayFinite) {
  for (const std::vector<float>& d :
       {std::vector<float>{50}, std::vector<float>{-50}, std::vector<float>{0, 50, 0.1f},
        std::vector<float>{-50, 0}, std::vector<float>{50, -50}, std::vector<float>{50, -30}}) {
    const Response response = FromLogRatios(d);
    const std::vector<double> weights = WeightsOf(DefaultCorrection(GetParam()), response);
    for (size_t t = 0; t < weights.size(); ++t) {
      const double want = Reference(DefaultCorrection(GetParam()), response, t);
      EXPECT_TRUE(std::isfinite(weights[t])) << Name(GetParam());
      EXPECT_NEAR(weights[t], want, 1e-12 * (1 + want)) << Name(GetParam());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CorrectionTest, testing::ValuesIn(kKinds),
                         [](const auto& kind) { return std::string(Name(kind.param)); });

// MIS masks, TIS clamps: one is not the other.
TEST(CorrectionTest, MaskedImportanceSamplingMasksAndDoesNotClamp) {
  const Response far = FromLogRatios({1.0f, 0.5f});  // product e^1.5 = 4.5
  EXPECT_THAT(WeightsOf({.kind = CorrectionKind::kSequenceMis, .cap = 3}, far), Each(0.0));
  EXPECT_THAT(WeightsOf({.kind = CorrectionKind::kSequenceTis, .cap = 3}, far), Each(3.0));
  const Response near = FromLogRatios({0.75f, 0.25f});
  EXPECT_THAT(WeightsOf({.kind = CorrectionKind::kSequenceMis, .cap = 3}, near),
              Each(std::exp(1.0)));
}

TEST(CorrectionTest, OneTokenBelowTheSmallestRatioVetoesTheResponse) {
  const CorrectionOptions veto{.kind = CorrectionKind::kVeto, .min_ratio = 1e-4};
  EXPECT_THAT(WeightsOf(veto, FromLogRatios({0, -9, 3})), Each(1.0));  // e^-9 = 1.2e-4
  EXPECT_THAT(WeightsOf(veto, FromLogRatios({0, -9.5f, 3})), Each(0.0));
}

TEST(CorrectionTest, IcePopMasksTokensAlone) {
  EXPECT_THAT(
      WeightsOf(DefaultCorrection(CorrectionKind::kIcePop), FromLogRatios({-0.75f, 0, 1.75f})),
      ElementsAre(0.0, 1.0, 0.0));
}

TEST(CorrectionStatisticsTest, AreOverTokens) {
  CorrectionStatistics statistics;
  statistics.Add(std::vector<double>{0.5, 0, 2});
  statistics.Add(std::vector<double>{1});
  const CorrectionMetrics metrics = statistics.Summarize();
  EXPECT_DOUBLE_EQ(metrics.mean, 3.5 / 4);
  EXPECT_DOUBLE_EQ(metrics.max, 2);
  EXPECT_DOUBLE_EQ(metrics.masked_share, 0.25);
  EXPECT_DOUBLE_EQ(metrics.effective_sample_size, 3.5 * 3.5 / (4 * 5.25));
}

TEST(CorrectionStatisticsTest, EqualWeightsAreOneEffectiveSampleEach) {
  CorrectionStatistics statistics;
  statistics.Add(std::vector<double>(5, 0.25));
  EXPECT_EQ(statistics.Summarize().effective_sample_size, 1);
}

TEST(CorrectionStatisticsTest, NothingAndNothingLeft) {
  CorrectionStatistics statistics;
  EXPECT_EQ(statistics.Summarize().effective_sample_size, 1);
  EXPECT_EQ(statistics.Scale({.kind = CorrectionKind::kTokenIs, .normalize = true}), 1);
  statistics.Add(std::vector<double>{0, 0});
  EXPECT_EQ(statistics.Summarize().masked_share, 1);
  EXPECT_EQ(statistics.Summarize().effective_sample_size, 0);
  EXPECT_EQ(statistics.Scale({.kind = CorrectionKind::kTokenIs, .normalize = true}), 1);
}

TEST(CorrectionStatisticsTest, ScaleMakesTheMeanOne) {
  CorrectionStatistics statistics;
  statistics.Add(std::vector<double>{2, 2, 2});
  statistics.Add(std::vector<double>{0.5});
  // Over tokens 6.5 / 4, over responses 2.5 / 2.
  EXPECT_DOUBLE_EQ(statistics.Scale({.kind = CorrectionKind::kTokenTis, .normalize = true}),
                   4 / 6.5);
  EXPECT_DOUBLE_EQ(statistics.Scale({.kind = CorrectionKind::kSequenceTis, .normalize = true}),
                   2 / 2.5);
  EXPECT_EQ(statistics.Scale({.kind = CorrectionKind::kTokenTis}), 1);
}

TEST(DefaultCorrectionTest, BoundsAreTheOnesInUse) {
  EXPECT_EQ(DefaultCorrection(CorrectionKind::kTokenTis).cap, 2);
  EXPECT_EQ(DefaultCorrection(CorrectionKind::kSequenceTis).cap, 3);
  EXPECT_EQ(DefaultCorrection(CorrectionKind::kSequenceMis).cap, 3);
  EXPECT_EQ(DefaultCorrection(CorrectionKind::kIcePop).low, 0.5);
  EXPECT_EQ(DefaultCorrection(CorrectionKind::kIcePop).high, 5);
  EXPECT_EQ(DefaultCorrection(CorrectionKind::kGeometricMask).high, 1.001);
  EXPECT_EQ(DefaultCorrection(CorrectionKind::kVeto).min_ratio, 1e-4);
}

}  // namespace
}  // namespace halfstep
