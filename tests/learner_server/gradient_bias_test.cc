// SPDX-License-Identifier: Apache-2.0
// Bias and variance of gradients, against exact sums over every response of a tiny policy.
#include "learner_server/algorithm/gradient_bias.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/workspace.h"
#include "learner_server/training/loss_gradient.h"
#include "learner_server/training/score_responses.h"
#include "tests/learner_server/tiny_train_state.h"

namespace halfstep {
namespace {

// Two tokens out of five after a prompt of one: 25 responses.
constexpr int32_t kVocab = 5;
constexpr int64_t kResponses = kVocab * kVocab;

ModelConfig ConfigOfPolicies() {
  ModelConfig config = TinyTrainConfig();
  config.vocab_size = kVocab;
  config.hidden_size = config.intermediate_size = 16;
  config.layers = 1;
  config.heads = 2;
  config.kv_heads = 1;
  config.max_positions = 8;
  config.initializer_range = 0.3f;
  return config;
}

using Vector = std::vector<double>;

Vector Minus(Vector a, const Vector& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

double Dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

double Norm(const Vector& a) { return std::sqrt(Dot(a, a)); }

constexpr CorrectionKind kKinds[] = {CorrectionKind::kNone, CorrectionKind::kSequenceIs,
                                     CorrectionKind::kTokenIs, CorrectionKind::kSequenceMis};

// Policies pi and mu, of two masters that are a little apart, and the gradient of the reward of
// every response under each correction.
class GradientBiasTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    policies_ = new Policies;
    Policies& p = *policies_;
    Workspace workspace;
    ExecContext ctx;
    ctx.workspace = &workspace;
    const TinyStateOptions unscaled{.loss_scale = {.initial = 1, .dynamic = false}};
    const auto learner_state = MakeTinyState(ctx, ConfigOfPolicies(), unscaled);
    const auto rollout_state = MakeTinyState(ctx, ConfigOfPolicies(), unscaled);
    TrainState& pi = *learner_state;
    TrainState& mu = *rollout_state;
    std::mt19937 random(5);
    std::normal_distribution<float> noise(0, 0.1f);
    for (size_t i = 0; i < mu.layout().specs().size(); ++i) {
      const Tensor values = mu.master.view(static_cast<int>(i));
      for (int64_t j = 0; j < values.elements(); ++j) values.as<float>()[j] += noise(random);
    }
    mu.RefreshWeights(ctx);

    std::vector<TrainSequence> sequences;
    for (int32_t y = 0; y < kResponses; ++y) {
      TrainSequence& sequence = sequences.emplace_back();
      sequence.tokens = {3, y / kVocab, y % kVocab};
      sequence.prompt_tokens = 1;
      sequence.advantage = static_cast<double>(y * 7 % 11 % 3) - 1;
    }
    const auto learner = *ScoreResponses(ctx, pi.weights, sequences, {});
    const auto rollout = *ScoreResponses(ctx, mu.weights, sequences, {});
    for (int32_t y = 0; y < kResponses; ++y) {
      sequences[y].behaviour = rollout[y];
      p.pi.push_back(std::exp(static_cast<double>(learner[y][0]) + learner[y][1]));
      p.mu.push_back(std::exp(static_cast<double>(rollout[y][0]) + rollout[y][1]));
      for (size_t c = 0; c < std::size(kKinds); ++c) {
        TrainStepOptions options;
        options.algorithm.aggregation = Aggregation::kSequenceMeanTokenSum;
        options.algorithm.correction = DefaultCorrection(kKinds[c]);
        options.algorithm.correction.cap = 1.2;
        const auto gradient = *LossGradient(ctx, options, {&sequences[y], 1}, &pi);
        p.gradients[c].emplace_back(gradient->begin(), gradient->end());
      }
    }
  }
  static void TearDownTestSuite() { delete policies_; }

  // The expectation under `policy` of what correction number `c` makes of a response.
  static Vector Expectation(const Vector& policy, size_t c) {
    Vector sum(policies_->gradients[c][0].size());
    for (int64_t y = 0; y < kResponses; ++y) {
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += policy[y] * policies_->gradients[c][y][i];
    }
    return sum;
  }
  static Vector Exact() { return Expectation(policies_->pi, 0); }
  // In units of ||g*||.
  static double TrueBias(size_t c) {
    return Norm(Minus(Expectation(policies_->mu, c), Exact())) / Norm(Exact());
  }

  static int64_t Pick(const Vector& policy, double uniform) {
    int64_t y = 0;
    for (; y + 1 < kResponses && uniform >= policy[y]; ++y) uniform -= policy[y];
    return y;
  }

  // Batches of `responses` each, both policies drawn with the same numbers.
  static std::vector<std::vector<SharedGradient>> Sample(int batches, int responses,
                                                         uint64_t seed) {
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<double> uniform;
    std::vector<std::vector<SharedGradient>> sampled;
    for (int b = 0; b < batches; ++b) {
      const size_t elements = policies_->gradients[0][0].size();
      std::vector<Vector> sums(1 + std::size(kKinds), Vector(elements));
      const auto add = [&](const Vector& gradient, Vector* sum) {
        for (size_t i = 0; i < elements; ++i) (*sum)[i] += gradient[i] / responses;
      };
      for (int r = 0; r < responses; ++r) {
        const double draw = uniform(random);
        add(policies_->gradients[0][Pick(policies_->pi, draw)], &sums[0]);
        const int64_t y = Pick(policies_->mu, draw);
        for (size_t c = 0; c < std::size(kKinds); ++c) {
          add(policies_->gradients[c][y], &sums[1 + c]);
        }
      }
      auto& batch = sampled.emplace_back();
      for (const Vector& sum : sums) {
        batch.push_back(std::make_shared<const std::vector<float>>(sum.begin(), sum.end()));
      }
    }
    return sampled;
  }

  static constexpr GradientRoles kRoles{.exact = 0, .unbiased = 2};  // kKinds[1] is sequence_is

  struct Policies {
    Vector pi, mu;
    std::vector<Vector> gradients[std::size(kKinds)];  // by response
  };
  static inline Policies* policies_ = nullptr;
};

// Within three errors: an interval is two to either side, and there are a dozen of them.
::testing::AssertionResult Holds(const Interval& interval, double truth) {
  const double margin = (interval.high - interval.low) / 4;
  if (interval.low - margin <= truth && truth <= interval.high + margin) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure()
         << truth << " is not in " << interval.low << " to " << interval.high;
}

TEST_F(GradientBiasTest, SequenceIsHasTheExactGradientAsItsExpectation) {
  EXPECT_LT(TrueBias(1), 1e-5);
  for (const size_t c : {0, 2, 3}) EXPECT_GT(TrueBias(c), 0.03) << Name(kKinds[c]);
}

TEST_F(GradientBiasTest, IntervalsHoldWhatEnumerationGives) {
  const JackknifeMoments moments = ComputeGradientMoments(Sample(200, 50, 1));
  EXPECT_TRUE(Holds(ExactNorm(moments, kRoles), Norm(Exact())));
  for (size_t c = 0; c < std::size(kKinds); ++c) {
    SCOPED_TRACE(Name(kKinds[c]));
    const auto figures = DescribeEstimator(moments, 1 + c, kRoles);
    ASSERT_TRUE(figures.has_value());
    const Vector mean = Expectation(policies_->mu, c);
    EXPECT_TRUE(Holds(figures->cosine, Dot(mean, Exact()) / (Norm(mean) * Norm(Exact()))));
    double trace = -Dot(mean, mean);
    for (int64_t y = 0; y < kResponses; ++y) {
      const Vector& gradient = policies_->gradients[c][y];
      trace += policies_->mu[y] * Dot(gradient, gradient);
    }
    EXPECT_TRUE(Holds(figures->deviation, std::sqrt(trace / 50) / Norm(Exact())));
    if (kKinds[c] == CorrectionKind::kSequenceIs) {
      EXPECT_EQ(figures->bias.norm.low, 0) << "told from the truth";
      EXPECT_EQ(figures->paired_bias.norm.high, 0) << "from itself";
      continue;
    }
    EXPECT_GT(figures->paired_bias.norm.low, 0) << "not seen";
    EXPECT_TRUE(Holds(figures->bias.norm, TrueBias(c)));
    EXPECT_TRUE(Holds(figures->paired_bias.norm, TrueBias(c)));
    // A mask takes away whole responses, as two draws that part do.
    if (kKinds[c] == CorrectionKind::kSequenceMis) continue;
    EXPECT_LT(figures->paired_bias.norm.high - figures->paired_bias.norm.low,
              figures->bias.norm.high - figures->bias.norm.low);
  }
}

// Few small batches, where the norm of a mean difference is mostly noise.
TEST_F(GradientBiasTest, SquaredBiasIsRightOnAverageWhereEachEstimateIsNoisy) {
  const Combination difference = {-1, 1, 0, 0, 0};
  constexpr int kStudies = 400;
  const Vector bias = Minus(Expectation(policies_->mu, 0), Exact());
  double mean = 0, squares = 0, naive = 0;
  for (int study = 0; study < kStudies; ++study) {
    const JackknifeMoments moments =
        ComputeGradientMoments(Sample(4, 4, 100 + static_cast<uint64_t>(study)));
    const double estimate = MeanProduct(moments.all, difference, difference);
    mean += estimate / kStudies;
    squares += estimate * estimate / kStudies;
    naive += (estimate + TotalVariance(moments.all, difference) / 4) / kStudies;
  }
  const double error = std::sqrt((squares - mean * mean) / kStudies);
  EXPECT_NEAR(mean, Dot(bias, bias), 3 * error);
  EXPECT_GT(naive, Dot(bias, bias) + 10 * error) << "a test of nothing";
}

TEST_F(GradientBiasTest, EqualEstimatorsDifferByExactlyNothing) {
  auto batches = Sample(5, 8, 3);
  for (auto& batch : batches) {
    batch[1] = std::make_shared<const std::vector<float>>(*batch[0]);
    batch[2] = batch[0];
  }
  const JackknifeMoments moments = ComputeGradientMoments(batches);
  const Combination difference = {1, -1, 0, 0, 0};
  EXPECT_EQ(MeanProduct(moments.all, difference, difference), 0);
  EXPECT_EQ(TotalVariance(moments.all, difference), 0);
  for (const GradientMoments& without : moments.without) {
    EXPECT_EQ(without.batches, 4);
    EXPECT_EQ(MeanProduct(without, difference, difference), 0);
  }
}

TEST_F(GradientBiasTest, CountsTheBatchesThatADifferenceRestsOn) {
  auto batches = Sample(12, 8, 3);
  // Weights other than 1 in three of them, a second estimate of the exact gradient in the others.
  for (size_t b = 0; b < batches.size(); ++b) batches[b][1] = batches[b][b < 3 ? 2 : 0];
  const JackknifeMoments moments = ComputeGradientMoments(batches);
  EXPECT_EQ(BatchesApart(moments, {1, -1, 0, 0, 0}), 3);
  EXPECT_EQ(BatchesApart(moments, {1, 0, 0, 0, 0}), 12);
  const auto figures = DescribeEstimator(moments, 1, {.exact = 0, .unbiased = 2});
  ASSERT_TRUE(figures.has_value());
  EXPECT_EQ(figures->bias.batches_apart, 3);
  EXPECT_EQ(figures->paired_bias.batches_apart, 9);
}

TEST_F(GradientBiasTest, AGradientLostInNoiseHasNoRelativeFigures) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<std::vector<SharedGradient>> batches(6);
  for (auto& batch : batches) {
    std::vector<float> noise(100);
    for (float& value : noise) value = normal(random);
    batch.assign(2, std::make_shared<const std::vector<float>>(noise));
  }
  const JackknifeMoments moments = ComputeGradientMoments(batches);
  EXPECT_EQ(ExactNorm(moments, {.exact = 0, .unbiased = 1}).low, 0);
  EXPECT_FALSE(DescribeEstimator(moments, 1, {.exact = 0, .unbiased = 1}).has_value());
}

TEST_F(GradientBiasTest, LeavingABatchOutIsComputingWithoutIt) {
  const auto batches = Sample(4, 8, 9);
  const JackknifeMoments moments = ComputeGradientMoments(batches);
  const GradientMoments without_last = ComputeGradientMoments(std::span(batches).first(3)).all;
  ASSERT_EQ(moments.without.size(), 4u);
  for (size_t e = 0; e < without_last.within.size(); ++e) {
    EXPECT_NEAR(moments.without[3].within[e], without_last.within[e], 1e-12);
    EXPECT_NEAR(moments.without[3].of_sums[e], without_last.of_sums[e], 1e-12);
  }
}

}  // namespace
}  // namespace halfstep
