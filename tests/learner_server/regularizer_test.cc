// SPDX-License-Identifier: Apache-2.0
// KL estimators, the entropy bonus and overlong shaping against their formulas.
#include "learner_server/algorithm/regularizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace halfstep {
namespace {

constexpr KlEstimator kEstimators[] = {KlEstimator::kK1, KlEstimator::kK2, KlEstimator::kK3};

double Reference(KlEstimator estimator, double log_prob, double reference) {
  const double x = std::min(std::max(reference - log_prob, -20.0), 20.0);
  switch (estimator) {
    case KlEstimator::kK1:
      return -x;
    case KlEstimator::kK2:
      return 0.5 * x * x;
    case KlEstimator::kK3:
      return std::exp(x) - x - 1;
  }
  return 0;
}

TEST(EstimateKlTest, ValueAndDerivativeAreThoseOfTheFormula) {
  for (const KlEstimator estimator : kEstimators) {
    for (const double x :
         {-50.0, -21.0, -3.0, -0.5, -1e-3, 0.0, 1e-3, 0.5, 3.0, 15.0, 21.0, 50.0}) {
      const double log_prob = -1.5, reference = log_prob + x, step = 1e-5;
      const KlEstimate estimate = EstimateKl(estimator, log_prob, reference);
      const double value = Reference(estimator, log_prob, reference);
      EXPECT_NEAR(estimate.value, value, 1e-12 * (1 + std::abs(value))) << Name(estimator) << x;
      const double slope = (Reference(estimator, log_prob + step, reference) -
                            Reference(estimator, log_prob - step, reference)) /
                           (2 * step);
      EXPECT_NEAR(estimate.derivative, slope, 1e-9 + 1e-9 * std::abs(slope))
          << Name(estimator) << x;
    }
  }
}

TEST(EstimateKlTest, EqualPoliciesGiveExactZeros) {
  for (const KlEstimator estimator : kEstimators) {
    EXPECT_EQ(EstimateKl(estimator, -0.7, -0.7).value, 0) << Name(estimator);
  }
  EXPECT_EQ(EstimateKl(KlEstimator::kK2, -0.7, -0.7).derivative, 0);
  EXPECT_EQ(EstimateKl(KlEstimator::kK3, -0.7, -0.7).derivative, 0);
}

// Over a whole distribution: as values all three estimate KL(pi || reference), k2 only near it; as
// losses their gradients are those that the header says.
TEST(EstimateKlTest, ExpectationsAreAsDocumented) {
  const std::vector<double> logits{0.3, -0.2, 1.1, -1.0};
  const std::vector<double> reference_logits{0.1, 0.4, 0.6, -0.3};
  const auto log_softmax = [](const std::vector<double>& z) {
    double sum = 0;
    for (const double each : z) sum += std::exp(each);
    std::vector<double> result;
    for (const double each : z) result.push_back(each - std::log(sum));
    return result;
  };
  const std::vector<double> reference = log_softmax(reference_logits);
  const auto kl = [&](const std::vector<double>& z, bool reverse) {
    const std::vector<double> log_pi = log_softmax(z);
    double sum = 0;
    for (size_t i = 0; i < z.size(); ++i) {
      sum += reverse ? std::exp(reference[i]) * (reference[i] - log_pi[i])
                     : std::exp(log_pi[i]) * (log_pi[i] - reference[i]);
    }
    return sum;
  };
  const std::vector<double> log_pi = log_softmax(logits);
  for (const KlEstimator estimator : kEstimators) {
    double mean = 0;
    // d log pi_i / d logit_j = [i = j] - p_j
    std::vector<double> gradient(logits.size(), 0.0);
    for (size_t i = 0; i < logits.size(); ++i) {
      const KlEstimate estimate = EstimateKl(estimator, log_pi[i], reference[i]);
      mean += std::exp(log_pi[i]) * estimate.value;
      for (size_t j = 0; j < logits.size(); ++j) {
        gradient[j] += std::exp(log_pi[i]) * estimate.derivative *
                       ((i == j ? 1.0 : 0.0) - std::exp(log_pi[j]));
      }
    }
    EXPECT_NEAR(mean, kl(logits, false), estimator == KlEstimator::kK2 ? 0.02 : 1e-12);
    for (size_t j = 0; j < logits.size(); ++j) {
      std::vector<double> up = logits, down = logits;
      up[j] += 1e-5;
      down[j] -= 1e-5;
      const bool reverse = estimator == KlEstimator::kK3;
      const double slope =
          estimator == KlEstimator::kK1 ? 0 : (kl(up, reverse) - kl(down, reverse)) / 2e-5;
      EXPECT_NEAR(gradient[j], slope, 1e-9) << Name(estimator) << " logit " << j;
    }
  }
}

TEST(KlLossTest, AddsToTheObjectivesGradient) {
  const std::vector<float> log_probs{-1.0f, -0.5f}, reference{-1.5f, -0.25f};
  std::vector<float> gradient{0.5f, -0.25f};
  KlStatistics statistics;
  AddKlLoss({.estimator = KlEstimator::kK2, .coefficient = 0.1}, {log_probs, reference, 0.25},
            gradient, &statistics);
  EXPECT_FLOAT_EQ(gradient[0], 0.5f + 0.1f * 0.25f * 0.5f);
  EXPECT_FLOAT_EQ(gradient[1], -0.25f - 0.1f * 0.25f * 0.25f);
  EXPECT_NEAR(statistics.estimate_sum, (0.25 + 0.0625) / 2, 1e-12);
  EXPECT_NEAR(statistics.loss, 0.1 * 0.25 * (0.25 + 0.0625) / 2, 1e-12);
  EXPECT_EQ(statistics.tokens, 2);
}

TEST(KlPenaltyTest, IsTheSumOverTheResponse) {
  const std::vector<float> log_probs{-1.0f, -0.5f, -2.0f}, reference{-1.5f, -0.25f, -2.0f};
  EXPECT_NEAR(KlPenalty({.estimator = KlEstimator::kK1, .coefficient = 0.2}, log_probs, reference),
              0.2 * 0.25, 1e-12);
  const double k3 = std::exp(-0.5) + 0.5 - 1 + std::exp(0.25) - 0.25 - 1;
  EXPECT_NEAR(KlPenalty({.coefficient = 0.2}, log_probs, reference), 0.2 * k3, 1e-12);
}

// Entropy of softmax(logits / temperature), summed naively.
double EntropyOf(const std::vector<double>& logits, double temperature) {
  double sum = 0, entropy = 0;
  for (const double logit : logits) sum += std::exp(logit / temperature);
  for (const double logit : logits) {
    const double p = std::exp(logit / temperature) / sum;
    entropy -= p * std::log(p);
  }
  return entropy;
}

TEST(EntropyBonusTest, IsMinusTheWeightedSum) {
  EXPECT_NEAR(EntropyBonus(0.01, std::vector<float>{1.5f, 0.5f}, 0.25), -0.01 * 0.25 * 2, 1e-12);
}

TEST(EntropyBonusTest, LogitGradientMatchesFiniteDifferences) {
  const std::vector<double> logits{0.3, -2.0, 4.0, 1.0, 1.0};
  for (const double temperature : {1.0, 0.7, 2.0}) {
    const EntropyBonusOptions options{0.01, 0.25, temperature};
    double sum = 0;
    for (const double logit : logits) sum += std::exp(logit / temperature);
    for (size_t j = 0; j < logits.size(); ++j) {
      std::vector<double> up = logits, down = logits;
      up[j] += 1e-5;
      down[j] -= 1e-5;
      const double slope =
          -0.01 * 0.25 * (EntropyOf(up, temperature) - EntropyOf(down, temperature)) / 2e-5;
      const double log_prob = logits[j] / temperature - std::log(sum);
      EXPECT_NEAR(EntropyBonusLogitGradient(options, log_prob, EntropyOf(logits, temperature)),
                  slope, 1e-12)
          << "temperature " << temperature << " logit " << j;
    }
  }
  EXPECT_EQ(EntropyBonusLogitGradient({1, 1, 1}, -INFINITY, 0.5), 0);
}

TEST(OverlongTest, FallsOverTheCache) {
  const OverlongOptions options{.enabled = true, .max_length = 100, .cache = 20};
  EXPECT_EQ(OverlongPenalty(options, 0), 0);
  EXPECT_EQ(OverlongPenalty(options, 80), 0);
  EXPECT_DOUBLE_EQ(OverlongPenalty(options, 81), -1.0 / 20);
  EXPECT_DOUBLE_EQ(OverlongPenalty(options, 90), -0.5);
  EXPECT_EQ(OverlongPenalty(options, 100), -1);
  EXPECT_EQ(OverlongPenalty(options, 101), -1);
  EXPECT_EQ(OverlongPenalty(options, 5000), -1);
  EXPECT_EQ(OverlongPenalty({}, 5000), 0);
}

TEST(OverlongTest, LengthsNotGivenAreThoseOfTheJob) {
  const OverlongOptions resolved = ResolveOverlong({.enabled = true}, 20480);
  EXPECT_EQ(resolved.max_length, 20480);
  EXPECT_EQ(resolved.cache, 4096);  // the paper's
  EXPECT_EQ(ResolveOverlong({.enabled = true}, 3).cache, 1);
  EXPECT_EQ(ResolveOverlong({true, 50, 7}, 20480).max_length, 50);
  EXPECT_EQ(ResolveOverlong({true, 50, 7}, 20480).cache, 7);
}

}  // namespace
}  // namespace halfstep
