// SPDX-License-Identifier: Apache-2.0
// Every objective against its formula in doubles, written naively, and every gradient against
// finite differences of that formula.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "learner_server/algorithm/policy_loss.h"

namespace halfstep {
namespace {

constexpr Objective kObjectives[] = {
    Objective::kPolicyGradient, Objective::kPpoClip, Objective::kGspo,   Objective::kCispo,
    Objective::kGmpo,           Objective::kSapo,    Objective::kDppoTv, Objective::kDro};

struct Response {
  std::vector<float> log_probs = {};
  std::vector<float> old_log_probs = {};
  std::vector<double> correction = {};
  double advantage = 0;
};

double Clip(double value, double low, double high) { return std::min(std::max(value, low), high); }

double Ppo(double ratio, double advantage, const PolicyLossOptions& options) {
  return -std::min(ratio * advantage,
                   Clip(ratio, 1 - options.clip_low, 1 + options.clip_high) * advantage);
}

// The loss as a function of `log_probs`; `held` are the same log-probs where a gradient stops.
double Reference(const PolicyLossOptions& options, const Response& response,
                 const std::vector<double>& log_probs, const std::vector<double>& held) {
  const double a = response.advantage;
  const size_t tokens = log_probs.size();
  double log_s = 0, log_geometric = 0;
  for (size_t t = 0; t < tokens; ++t) {
    const double d = log_probs[t] - response.old_log_probs[t];
    log_s += d / static_cast<double>(tokens);
    double b = Clip(d, -20, 20);
    if (a > 0) b = std::min(b, options.clip_high);
    if (a < 0) b = std::max(b, -options.clip_low);
    log_geometric += b / static_cast<double>(tokens);
  }
  double sum = 0;
  for (size_t t = 0; t < tokens; ++t) {
    const double old = response.old_log_probs[t];
    const double r = std::exp(Clip(log_probs[t] - old, -20, 20));
    const double held_r = std::exp(Clip(held[t] - old, -20, 20));
    double loss = 0;
    switch (options.objective) {
      case Objective::kPolicyGradient:
        loss = -a * log_probs[t];
        break;
      case Objective::kPpoClip:
        loss = Ppo(r, a, options);
        if (options.dual_clip > 0 && a < 0) loss = std::min(loss, -options.dual_clip * a);
        break;
      case Objective::kGspo:
        loss = Ppo(std::exp(Clip(log_s, -20, 20)), a, options);
        break;
      case Objective::kCispo:
        loss = -Clip(held_r, 1 - options.clip_low, 1 + options.clip_high) * a * log_probs[t];
        break;
      case Objective::kGmpo:
        loss = -a * std::exp(log_geometric);
        break;
      case Objective::kSapo: {
        const double tau = a > 0 ? options.tau_positive : options.tau_negative;
        loss = -(4 / tau) / (1 + std::exp(-tau * (r - 1))) * a;
        break;
      }
      case Objective::kDppoTv: {
        const double moved = std::exp(held[t]) - std::exp(old);
        const bool kept = a > 0 ? moved <= options.delta : moved >= -options.delta;
        loss = kept ? -a * std::min(held_r, 20.0) * log_probs[t] : 0;
        break;
      }
      case Objective::kDro:
        loss =
            -(a * log_probs[t] - options.beta / 2 * std::pow(Clip(log_probs[t] - old, -20, 20), 2));
        break;
    }
    sum += loss * (response.correction.empty() ? 1 : response.correction[t]);
  }
  return sum;
}

struct Result {
  std::vector<float> derivative;
  PolicyLossStatistics statistics;
};

constexpr double kTokenWeight = 0.125;

Result Evaluate(const PolicyLossOptions& options, const Response& response) {
  Result result;
  result.derivative.resize(response.log_probs.size());
  PolicyLoss(options,
             {response.log_probs, response.old_log_probs, response.advantage, kTokenWeight,
              response.correction},
             result.derivative, &result.statistics);
  return result;
}

// Ragged responses with log-ratios of about `spread`, with and without corrections.
std::vector<Response> RandomResponses(double spread) {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> log_prob(-4.0f, -0.05f);
  std::normal_distribution<double> noise(0, spread);
  std::uniform_real_distribution<double> weight(0, 3);
  std::vector<Response> responses;
  for (const size_t length : {1, 2, 5, 9, 33}) {
    for (const double advantage : {1.3, -0.8, 0.0}) {
      for (const bool corrected : {false, true}) {
        Response response{.advantage = advantage};
        for (size_t t = 0; t < length; ++t) {
          response.log_probs.push_back(log_prob(random));
          response.old_log_probs.push_back(
              static_cast<float>(response.log_probs.back() - noise(random)));
          if (corrected) response.correction.push_back(t % 4 == 3 ? 0 : weight(random));
        }
        responses.push_back(response);
      }
    }
  }
  return responses;
}

std::vector<PolicyLossOptions> Variants(Objective objective) {
  std::vector<PolicyLossOptions> variants{DefaultOptions(objective)};
  if (objective == Objective::kPpoClip) {
    variants.push_back({.objective = objective, .clip_high = 0.28, .dual_clip = 3});
  } else if (objective == Objective::kGspo || objective == Objective::kCispo) {
    variants.push_back({.objective = objective, .clip_low = 0.1, .clip_high = 0.3});
  }
  return variants;
}

void ExpectMatchesReference(const PolicyLossOptions& options, const Response& response,
                            const std::string& what) {
  const Result result = Evaluate(options, response);
  const std::vector<double> at(response.log_probs.begin(), response.log_probs.end());
  const double loss = kTokenWeight * Reference(options, response, at, at);
  EXPECT_NEAR(result.statistics.loss, loss, 1e-12 * (1 + std::abs(loss))) << what;
  EXPECT_EQ(result.statistics.tokens, static_cast<int64_t>(at.size())) << what;
  const double step = 1e-6;
  for (size_t t = 0; t < at.size(); ++t) {
    std::vector<double> up = at, down = at;
    up[t] += step;
    down[t] -= step;
    const double slope =
        kTokenWeight *
        (Reference(options, response, up, at) - Reference(options, response, down, at)) /
        (up[t] - down[t]);
    // Differences of losses of this size, divided by the step, are no better.
    const double noise = 1e-15 * std::abs(loss) / step;
    EXPECT_NEAR(result.derivative[t], slope, 1e-7 + 1e-6 * std::abs(slope) + noise)
        << what << " token " << t;
  }
}

class ObjectiveTest : public testing::TestWithParam<Objective> {};

TEST_P(ObjectiveTest, ValueAndGradientAreThoseOfTheFormula) {
  for (const PolicyLossOptions& options : Variants(GetParam())) {
    for (const double spread : {0.001, 0.3, 1.5}) {
      int number = 0;
      for (const Response& response : RandomResponses(spread)) {
        ExpectMatchesReference(options, response,
                               std::string(Name(GetParam())) + " spread " + std::to_string(spread) +
                                   " case " + std::to_string(number++));
      }
    }
  }
}

// Log-ratios of +-50 at one token, alone and among others.
TEST_P(ObjectiveTest, ExtremeRatiosAreClampedWithoutGradient) {
  for (const PolicyLossOptions& options : Variants(GetParam())) {
    for (const double advantage : {1.0, -1.0}) {
      for (const float far : {50.0f, -50.0f}) {
        const Response alone{{-60.0f + far}, {-60.0f}, {}, advantage};
        const Response among{{-1.0f, -60.0f + far, -0.5f}, {-1.1f, -60.0f, -0.45f}, {}, advantage};
        for (const Response& response : {alone, among}) {
          const std::string what = std::string(Name(GetParam())) + " A " +
                                   std::to_string(advantage) + " d " + std::to_string(far);
          ExpectMatchesReference(options, response, what);
          const Result result = Evaluate(options, response);
          EXPECT_TRUE(std::isfinite(result.statistics.loss)) << what;
          EXPECT_TRUE(std::isfinite(result.statistics.ratio_sum)) << what;
          for (const float derivative : result.derivative) {
            EXPECT_TRUE(std::isfinite(derivative)) << what;
          }
        }
      }
    }
  }
}

TEST_P(ObjectiveTest, ZeroAdvantageHasNoGradientExceptInDro) {
  for (Response response : RandomResponses(0.5)) {
    response.advantage = 0;
    const Result result = Evaluate(DefaultOptions(GetParam()), response);
    if (GetParam() == Objective::kDro) {
      EXPECT_NE(result.statistics.loss, 0);
      continue;
    }
    EXPECT_EQ(result.statistics.loss, 0);
    EXPECT_THAT(result.derivative, testing::Each(0.0f));
  }
}

// Before the policy has moved, every objective pulls by -A times its slope at r = 1, which is 1.
TEST_P(ObjectiveTest, AtTheOldPolicyIsThePolicyGradient) {
  for (Response response : RandomResponses(0)) {
    response.correction.clear();
    const Result result = Evaluate(DefaultOptions(GetParam()), response);
    for (const float derivative : result.derivative) {
      EXPECT_FLOAT_EQ(derivative, static_cast<float>(-response.advantage * kTokenWeight))
          << Name(GetParam());
    }
    EXPECT_EQ(result.statistics.clipped_low + result.statistics.clipped_high +
                  result.statistics.clipped_dual,
              0);
    EXPECT_DOUBLE_EQ(result.statistics.ratio_sum, static_cast<double>(response.log_probs.size()));
  }
}

TEST_P(ObjectiveTest, MaskedResponseGivesExactZeros) {
  for (Response response : RandomResponses(0.5)) {
    response.correction.assign(response.log_probs.size(), 0.0);
    const Result result = Evaluate(DefaultOptions(GetParam()), response);
    EXPECT_EQ(result.statistics.loss, 0) << Name(GetParam());
    EXPECT_THAT(result.derivative, testing::Each(0.0f)) << Name(GetParam());
  }
}

INSTANTIATE_TEST_SUITE_P(All, ObjectiveTest, testing::ValuesIn(kObjectives),
                         [](const auto& objective) { return std::string(Name(objective.param)); });

TEST(ObjectiveTest, DualClipBoundsBadResponsesAlone) {
  const PolicyLossOptions options{.objective = Objective::kPpoClip, .dual_clip = 3};
  const Result bad = Evaluate(options, {{-0.5f}, {-2.5f}, {}, -1});
  EXPECT_EQ(bad.statistics.clipped_dual, 1);
  EXPECT_DOUBLE_EQ(bad.statistics.loss, 3 * kTokenWeight);
  EXPECT_EQ(bad.derivative[0], 0);
  const Result good = Evaluate(options, {{-2.5f}, {-0.5f}, {}, 1});
  EXPECT_EQ(good.statistics.clipped_dual, 0);
  EXPECT_NE(good.derivative[0], 0);
}

TEST(ObjectiveTest, SequenceRatioSendsItsGradientThroughEveryToken) {
  const PolicyLossOptions options{.objective = Objective::kGspo, .clip_low = 0.5, .clip_high = 0.5};
  const Result result = Evaluate(options, {{-1.0f, -0.5f, -3.0f}, {-1.5f, -0.75f, -2.5f}, {}, 2});
  const double ratio = std::exp((0.5 + 0.25 - 0.5) / 3);
  EXPECT_THAT(result.derivative, testing::Each(testing::FloatNear(
                                     static_cast<float>(-2 * ratio * kTokenWeight), 1e-7f)));
  // Far from the old policy none has any.
  const Result far = Evaluate(options, {{-0.1f, -0.5f}, {-2.0f, -0.75f}, {}, 2});
  EXPECT_THAT(far.derivative, testing::Each(0.0f));
  EXPECT_EQ(far.statistics.clipped_high, 2);
}

TEST(ObjectiveTest, CispoNeverDropsAToken) {
  const PolicyLossOptions options{
      .objective = Objective::kCispo, .clip_low = 0.2, .clip_high = 0.2};
  const Result result = Evaluate(options, {{-0.1f, -3.0f}, {-3.0f, -0.1f}, {}, 1});
  EXPECT_FLOAT_EQ(result.derivative[0], -1.2f * 0.125f);
  EXPECT_FLOAT_EQ(result.derivative[1], -0.8f * 0.125f);
  EXPECT_EQ(result.statistics.clipped_low, 1);
  EXPECT_EQ(result.statistics.clipped_high, 1);
}

TEST(ObjectiveTest, DppoDropsTokensWhoseProbabilityMovedTooFar) {
  const PolicyLossOptions options{.objective = Objective::kDppoTv, .delta = 0.15};
  // Probabilities 0.30 -> 0.50 and 1e-5 -> 1e-4: a large ratio of a tiny probability stays.
  const Response good{{std::log(0.5f), std::log(1e-4f)}, {std::log(0.3f), std::log(1e-5f)}, {}, 1};
  const Result result = Evaluate(options, good);
  EXPECT_EQ(result.derivative[0], 0);
  EXPECT_NEAR(result.derivative[1], -10 * kTokenWeight, 1e-4);
  EXPECT_EQ(result.statistics.clipped_high, 1);
}

TEST(DefaultOptionsTest, AreTheAuthors) {
  EXPECT_DOUBLE_EQ(DefaultOptions(Objective::kPpoClip).clip_low, 0.2);
  EXPECT_DOUBLE_EQ(DefaultOptions(Objective::kPpoClip).dual_clip, 0);
  EXPECT_DOUBLE_EQ(DefaultOptions(Objective::kGspo).clip_low, 3e-4);
  EXPECT_DOUBLE_EQ(DefaultOptions(Objective::kGspo).clip_high, 4e-4);
  EXPECT_DOUBLE_EQ(DefaultOptions(Objective::kGmpo).clip_high, 0.4);
  EXPECT_DOUBLE_EQ(1 + DefaultOptions(Objective::kCispo).clip_high, 5);
  EXPECT_DOUBLE_EQ(1 - DefaultOptions(Objective::kCispo).clip_low, 0);
  EXPECT_DOUBLE_EQ(DefaultOptions(Objective::kSapo).tau_negative, 1.05);
  EXPECT_DOUBLE_EQ(DefaultOptions(Objective::kDppoTv).delta, 0.15);
}

}  // namespace
}  // namespace halfstep
