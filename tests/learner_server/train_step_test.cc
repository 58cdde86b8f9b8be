// SPDX-License-Identifier: Apache-2.0
// One optimizer step on a tiny model: learning, splitting, clipping. What it does about overflows
// is in train_step_overflow_test.cc.
#include "learner_server/training/train_step.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "common/base/error_reason.h"
#include "tests/learner_server/train_step_fixture.h"

namespace halfstep {
namespace {

TEST_F(TrainStepTest, LossFallsInEveryPrecision) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    const auto state = MakeState(dtype, StaticScale(dtype == DType::kFloat16 ? 1024 : 1));
    TrainStep step(ctx_, options_, state.get());
    double first = 0, last = 0;
    for (int i = 0; i < 40; ++i) {
      const auto report = step.Run(sequences_, nullptr);
      ASSERT_TRUE(report.ok()) << report.status();
      EXPECT_TRUE(report->applied);
      last = report->loss.loss;
      if (i == 0) first = last;
    }
    EXPECT_NEAR(first, std::log(40.0), 0.5) << Name(dtype);
    EXPECT_LT(last, 0.2) << Name(dtype);
    EXPECT_EQ(state->optimizer_steps, 40);
  }
}

TEST_F(TrainStepTest, GradientOfTheMasterMatchesFiniteDifferences) {
  const auto state = MakeState(DType::kFloat32, StaticScale(1));
  options_.clip_norm = 0;
  options_.schedule.peak = 0;  // the first moment is 0.1 of the gradient; the weights stay
  TrainStep step(ctx_, options_, state.get());
  ASSERT_TRUE(step.Run(sequences_, nullptr).ok());
  float* master = state->master.flat().as<float>();
  const float* moment = state->first_moment.flat().as<float>();
  const std::vector<float> gradient(moment, moment + state->first_moment.flat().elements());
  for (const ParameterSpec& spec : state->layout().specs()) {
    const int64_t at = spec.offset + spec.shape.elements() / 3;
    const float original = master[at];
    double losses[2];
    for (const int side : {0, 1}) {
      master[at] = original + (side == 0 ? -1 : 1) * 0x1p-8f;
      state->RefreshWeights(ctx_);
      losses[side] = step.Run(sequences_, nullptr)->loss.loss;
    }
    master[at] = original;
    EXPECT_NEAR(gradient[at] * 10, (losses[1] - losses[0]) * 128, 2e-3) << spec.name;
  }
}

// The whole loss: a clipped objective, KL to a reference policy and an entropy bonus.
TEST_F(TrainStepTest, GradientOfTheRegularizersMatchesFiniteDifferences) {
  const auto state = MakeState(DType::kFloat32, StaticScale(1));
  options_.algorithm = *FindAlgorithmPreset("grpo");
  options_.algorithm.regularizers.kl = {KlEstimator::kK3, KlPlace::kLoss, 0.7};
  options_.algorithm.regularizers.entropy_coefficient = 0.3;
  options_.temperature = 0.9f;
  options_.clip_norm = 0;
  options_.schedule.peak = 0;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    TrainSequence& sequence = sequences_[i];
    sequence.advantage = i == 0 ? 0 : 1 - 0.5 * static_cast<double>(i);
    for (int64_t t = 0; t < sequence.response_tokens(); ++t) {
      sequence.behaviour.push_back(-3.6f - 0.01f * static_cast<float>(t));
      sequence.reference.push_back(-4.0f + 0.1f * static_cast<float>(i));
    }
  }
  TrainStep step(ctx_, options_, state.get());
  const auto loss = [&] {
    const auto report = step.Run(sequences_, nullptr);
    EXPECT_TRUE(report.ok()) << report.status();
    EXPECT_GT(report->kl.loss, 0);
    EXPECT_LT(report->entropy_loss, 0);
    return report->loss.loss + report->kl.loss + report->entropy_loss;
  };
  loss();
  float* master = state->master.flat().as<float>();
  const float* moment = state->first_moment.flat().as<float>();
  const std::vector<float> gradient(moment, moment + state->first_moment.flat().elements());
  for (const ParameterSpec& spec : state->layout().specs()) {
    const int64_t at = spec.offset + spec.shape.elements() / 3;
    const float original = master[at];
    double losses[2];
    for (const int side : {0, 1}) {
      master[at] = original + (side == 0 ? -1 : 1) * 0x1p-8f;
      state->RefreshWeights(ctx_);
      losses[side] = loss();
    }
    master[at] = original;
    EXPECT_NEAR(gradient[at] * 10, (losses[1] - losses[0]) * 128, 2e-3) << spec.name;
  }
}

// Where the score has lost it, KL is only measured.
TEST_F(TrainStepTest, KlInTheRewardAddsNothingToTheGradient) {
  std::vector<std::string> after;
  for (const double coefficient : {0.0, 0.7}) {
    const auto state = MakeState(DType::kFloat16, StaticScale(1024));
    options_.algorithm.regularizers.kl = {KlEstimator::kK3, KlPlace::kReward, coefficient};
    for (TrainSequence& sequence : sequences_) {
      sequence.reference.assign(sequence.response_tokens(), -4.0f);
    }
    TrainStep step(ctx_, options_, state.get());
    const auto report = step.Run(sequences_, nullptr);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->kl.tokens, coefficient > 0 ? report->tokens : 0);
    EXPECT_EQ(report->kl.estimate_sum > 0, coefficient > 0);
    after.push_back(Snapshot(*state).bytes);
  }
  EXPECT_EQ(after[0], after[1]);
}

TEST_F(TrainStepTest, SplitIntoMicroBatchesAndThreadsChangeNoBit) {
  std::vector<std::string> outcomes;
  for (const int64_t budget : {10, 40, 1000}) {
    for (const int threads : {1, 2}) {
      ThreadPool pool(threads);
      ctx_.threads = &pool;
      const auto state = MakeState(DType::kFloat16, StaticScale(1024));
      options_.micro_batch_tokens = budget;
      TrainStep step(ctx_, options_, state.get());
      for (int i = 0; i < 3; ++i) ASSERT_TRUE(step.Run(sequences_, nullptr).ok());
      outcomes.push_back(Snapshot(*state).bytes);
    }
  }
  EXPECT_THAT(outcomes, testing::Each(outcomes[0]));
}

TEST_F(TrainStepTest, ScalingByAPowerOfTwoChangesNoBitInFp32) {
  std::vector<std::string> outcomes;
  for (const float scale : {1.0f, 4096.0f}) {
    const auto state = MakeState(DType::kFloat32, StaticScale(scale));
    TrainStep step(ctx_, options_, state.get());
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(step.Run(sequences_, nullptr).ok());
    outcomes.push_back(Snapshot(*state).bytes);
  }
  EXPECT_EQ(outcomes[0], outcomes[1]);
}

TEST_F(TrainStepTest, SequencesWithoutAdvantageCountButDoNotTrain) {
  options_.algorithm = *FindAlgorithmPreset("reinforce");
  options_.constant_length = 8;
  sequences_[1].advantage = 0;
  sequences_[4].advantage = 0;
  for (TrainSequence& sequence : sequences_) {
    sequence.behaviour.assign(sequence.response_tokens(), -3.5f);
  }
  const auto with_zeros = MakeState(DType::kFloat32, StaticScale(1));
  MismatchStatistics mismatch;
  const auto report = TrainStep(ctx_, options_, with_zeros.get()).Run(sequences_, &mismatch);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->sequences, 6);
  EXPECT_EQ(mismatch.Summarize().tokens_compared, report->tokens);
  EXPECT_EQ(report->loss.tokens, report->tokens);

  // Their only effect is through the number of sequences.
  sequences_.erase(sequences_.begin() + 4);
  sequences_.erase(sequences_.begin() + 1);
  const auto without = MakeState(DType::kFloat32, StaticScale(1));
  const auto fewer = TrainStep(ctx_, options_, without.get()).Run(sequences_, nullptr);
  ASSERT_TRUE(fewer.ok()) << fewer.status();
  EXPECT_NEAR(fewer->gradient_norm * 4 / 6, report->gradient_norm, 1e-6);
}

TEST_F(TrainStepTest, CorrectionWeighsByThePolicyThatTheAlgorithmNames) {
  const auto state = MakeState(DType::kFloat32, StaticScale(1));
  for (TrainSequence& sequence : sequences_) {
    const auto tokens = static_cast<size_t>(sequence.response_tokens());
    sequence.behaviour.assign(tokens, -4.0f);
    sequence.old.assign(tokens, -4.0f + std::log(1.5f));
  }
  options_.clip_norm = 0;
  options_.schedule.peak = 0;  // the first moment is 0.1 of the gradient; the weights stay
  const auto moment = [&](const Algorithm& algorithm, CorrectionMetrics* metrics) {
    const Tensor moments = state->first_moment.flat();
    std::memset(moments.data(), 0, moments.bytes());
    state->optimizer_steps = 0;
    options_.algorithm = algorithm;
    const auto report = TrainStep(ctx_, options_, state.get()).Run(sequences_, nullptr);
    EXPECT_TRUE(report.ok()) << report.status();
    *metrics = report->correction;
    const ConstTensor flat = std::as_const(state->first_moment).flat();
    return std::vector<float>(flat.as<float>(), flat.as<float>() + flat.elements());
  };
  CorrectionMetrics metrics;
  Algorithm algorithm = *FindAlgorithmPreset("grpo_token_tis");
  algorithm.correction.kind = CorrectionKind::kNone;
  algorithm.loss.clip_low = algorithm.loss.clip_high = 1e3;
  const std::vector<float> plain = moment(algorithm, &metrics);
  EXPECT_EQ(metrics.mean, 1);
  algorithm.correction.kind = CorrectionKind::kTokenTis;
  const std::vector<float> corrected = moment(algorithm, &metrics);
  EXPECT_NEAR(metrics.mean, 1.5, 1e-6);
  double difference = 0, norm = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    difference += std::pow(corrected[i] - 1.5 * plain[i], 2);
    norm += std::pow(plain[i], 2);
  }
  EXPECT_GT(norm, 1e-4);
  EXPECT_LT(std::sqrt(difference / norm), 1e-4);

  // By the current policy: about 1/40 against e^-4 for each token, so far from 1.5.
  moment(*FindAlgorithmPreset("pg_seq_tis"), &metrics);
  EXPECT_GT(metrics.mean, 0);
  EXPECT_NE(metrics.mean, 1.5);
}

TEST_F(TrainStepTest, ClipsByTheUnscaledNorm) {
  options_.clip_norm = 0.01f;
  const auto state = MakeState(DType::kFloat32, StaticScale(256));
  TrainStep step(ctx_, options_, state.get());
  const auto report = step.Run(sequences_, nullptr);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(report->gradient_norm, 0.1);
  double squares = 0;
  const float* moment = state->first_moment.flat().as<float>();
  for (int64_t i = 0; i < state->first_moment.flat().elements(); ++i) {
    squares += 100.0 * moment[i] * moment[i];  // (1 - beta1) g = 0.1 g
  }
  EXPECT_NEAR(std::sqrt(squares), 0.01, 1e-5);
}

TEST_F(TrainStepTest, DecaysMatricesOnly) {
  options_.weight_decay = 0.5f;
  options_.schedule.peak = 0.1;
  sequences_.resize(1);
  sequences_[0].advantage = 0;  // no gradient: what moves is decay
  const auto state = MakeState(DType::kFloat32, StaticScale(1));
  const auto initial = MakeState(DType::kFloat32, StaticScale(1));
  ASSERT_TRUE(TrainStep(ctx_, options_, state.get()).Run(sequences_, nullptr).ok());
  const std::vector<ParameterSpec>& specs = state->layout().specs();
  for (size_t i = 0; i < specs.size(); ++i) {
    const float before = initial->master.view(static_cast<int>(i)).as<float>()[0];
    const float after = state->master.view(static_cast<int>(i)).as<float>()[0];
    EXPECT_NEAR(after, specs[i].weight_decay ? before * 0.95f : before, 1e-7) << specs[i].name;
  }
}

TEST_F(TrainStepTest, NothingToTrainOnIsNoStep) {
  const auto state = MakeState(DType::kFloat16);
  const Snapshot before(*state);
  const auto report = TrainStep(ctx_, options_, state.get()).Run({}, nullptr);
  ASSERT_TRUE(report.ok());
  EXPECT_FALSE(report->applied);
  EXPECT_FALSE(report->skipped);
  EXPECT_TRUE(Snapshot(*state) == before);
}

TEST_F(TrainStepTest, OnlyFiniteWeightsMayBePublished) {
  const auto state = MakeState(DType::kFloat32, StaticScale(1));
  EXPECT_TRUE(CheckPublishable(ctx_, state->master, DType::kFloat16).ok());
  float* norm = state->master.view(state->layout().final_norm()).as<float>();
  norm[0] = 70000;
  EXPECT_TRUE(CheckPublishable(ctx_, state->master, DType::kBFloat16).ok());
  const absl::Status too_large = CheckPublishable(ctx_, state->master, DType::kFloat16);
  EXPECT_EQ(ReasonOf(too_large), "NON_FINITE_WEIGHTS");
  EXPECT_THAT(std::string(too_large.message()), testing::HasSubstr("final_norm"));
  norm[0] = INFINITY;
  EXPECT_EQ(ReasonOf(CheckPublishable(ctx_, state->master, DType::kFloat32)), "NON_FINITE_WEIGHTS");
}

TEST_F(TrainStepTest, StopsBeforeAnyMicroBatchWithNothingChanged) {
  options_.micro_batch_tokens = 1;  // one sequence each
  const auto undisturbed = MakeState(DType::kFloat16, StaticScale(1024));
  ASSERT_TRUE(TrainStep(ctx_, options_, undisturbed.get()).Run(sequences_, nullptr).ok());
  const auto state = MakeState(DType::kFloat16, StaticScale(1024));
  const Snapshot before(*state);
  TrainStep step(ctx_, options_, state.get());
  for (int stop_at = 1; stop_at <= 6; ++stop_at) {
    int asked = 0;
    const auto report = step.Run(sequences_, nullptr, [&] { return ++asked == stop_at; });
    EXPECT_TRUE(absl::IsCancelled(report.status()));
    EXPECT_EQ(Snapshot(*state), before);
  }
  int asked = 0;
  ASSERT_TRUE(step.Run(sequences_, nullptr, [&] { return ++asked == 7; }).ok());
  EXPECT_EQ(Snapshot(*state), Snapshot(*undisturbed));
}

}  // namespace
}  // namespace halfstep
