// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/deployment_gap.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "kernels/thread_pool.h"
#include "kernels/workspace.h"
#include "learner_server/training/score_responses.h"
#include "learner_server/training/train_state.h"
#include "tests/learner_server/tiny_train_state.h"

namespace halfstep {
namespace {

class DeploymentGapTest : public testing::Test {
 protected:
  DeploymentGapTest() {
    ctx_.workspace = &workspace_;
    ctx_.threads = &threads_;
    config_.vocab_size = 16;
    config_.hidden_size = 16;
    config_.intermediate_size = 32;
    config_.layers = 2;
    config_.heads = 2;
    config_.kv_heads = 1;
    config_.head_dim = 8;
    config_.max_positions = 32;
    config_.initializer_range = 0.3f;
    state_ = MakeTinyState(ctx_, config_, {.seed = 5});
    for (int32_t i = 0; i < 4; ++i) {
      Trajectory trajectory;
      trajectory.prompt = {1, i};
      trajectory.sample.tokens = {i, 3, static_cast<int32_t>(2 + i)};
      trajectory.reward.outcome = RewardOutcome::kScore;
      trajectory.reward.score = i % 2 == 0 ? 1.0 : 0.0;
      sampled_.push_back(trajectory);
    }
    // The learner's own log-probs, as those of an engine without a gap.
    std::vector<TrainSequence> sequences;
    for (const Trajectory& trajectory : sampled_) {
      TrainSequence sequence;
      sequence.tokens = trajectory.prompt;
      sequence.tokens.insert(sequence.tokens.end(), trajectory.sample.tokens.begin(),
                             trajectory.sample.tokens.end());
      sequence.prompt_tokens = 2;
      sequences.push_back(sequence);
    }
    const auto scored = ScoreResponses(ctx_, state_->weights, sequences, {});
    for (size_t i = 0; i < sampled_.size(); ++i) sampled_[i].sample.log_probs = (*scored)[i];
  }

  DeploymentGap Measure() {
    return MeasureDeploymentGap(ctx_, state_->weights, sampled_, {}).value();
  }

  Workspace workspace_;
  ThreadPool threads_{1};
  ExecContext ctx_;
  ModelConfig config_;
  std::unique_ptr<TrainState> state_;
  std::vector<Trajectory> sampled_;
};

TEST_F(DeploymentGapTest, IsNothingWithOneEngine) {
  const DeploymentGap gap = Measure();
  EXPECT_EQ(gap.learner_accuracy, 0.5);
  EXPECT_EQ(gap.abs_log_prob_diff, 0);
  EXPECT_EQ(gap.tokens, 12);
}

TEST_F(DeploymentGapTest, WeighsResponsesByWhatTheLearnerMakesOfThem) {
  // The rollout's engine thought the first response e times less probable.
  sampled_[0].sample.log_probs[1] -= 1;
  const DeploymentGap gap = Measure();
  EXPECT_NEAR(gap.abs_log_prob_diff, 1.0 / 12, 1e-6);
  EXPECT_NEAR(gap.learner_accuracy, (M_E + 1) / (M_E + 3), 1e-6);
}

TEST_F(DeploymentGapTest, ResponsesWithoutAScoreCountAsZeroAndWeightsAreBounded) {
  sampled_[2].reward.outcome = RewardOutcome::kUnscorable;
  sampled_[1].sample.log_probs[0] -= 1000;  // a weight of e^20, not of e^1000
  const DeploymentGap gap = Measure();
  EXPECT_NEAR(gap.learner_accuracy, 1 / (3 + std::exp(20.0)), 1e-12);
}

TEST_F(DeploymentGapTest, EndsWhenAsked) {
  DeploymentGapOptions options;
  options.micro_batch_tokens = 4;
  options.go_on = [] { return false; };
  EXPECT_TRUE(
      absl::IsCancelled(MeasureDeploymentGap(ctx_, state_->weights, sampled_, options).status()));
}

}  // namespace
}  // namespace halfstep
