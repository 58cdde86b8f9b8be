// SPDX-License-Identifier: Apache-2.0
// From trajectories to batches, and which version generates which batch.
#include "learner_server/training/rollout_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "common/base/error_reason.h"
#include "learner_server/training/dynamic_sampling.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAreArray;

// Groups of `group_size`; nothing stands for a response without a score.
std::vector<Trajectory> Trajectories(const std::vector<std::optional<double>>& scores,
                                     int64_t group_size) {
  std::vector<Trajectory> trajectories;
  for (size_t i = 0; i < scores.size(); ++i) {
    Trajectory trajectory;
    trajectory.key = {Purpose::kTrain, i / group_size};
    trajectory.prompt = {1, 2};
    trajectory.sample.index = static_cast<uint32_t>(i % group_size);
    trajectory.sample.tokens.assign(i + 1, 9);
    trajectory.sample.log_probs.assign(i + 1, -0.5f);
    if (i == 0) trajectory.sample.finish_reason = FinishReason::kLength;
    if (scores[i]) trajectory.reward = {RewardOutcome::kScore, *scores[i], ""};
    trajectory.rollout_id = i < 3 ? "a" : "b";
    trajectories.push_back(std::move(trajectory));
  }
  return trajectories;
}

JobSettings Settings(int64_t samples, int64_t updates = 1) {
  JobSettings settings;
  settings.samples = samples;
  settings.updates = updates;
  settings.train_step.algorithm = *FindAlgorithmPreset("dr_grpo");
  return settings;
}

std::vector<double> AdvantagesOf(const TrainBatch& batch) {
  std::vector<double> advantages;
  for (const auto& update : batch.updates) {
    for (const TrainSequence& sequence : update) advantages.push_back(sequence.advantage);
  }
  return advantages;
}

TEST(MakeTrainBatchTest, SplitsGroupsOverUpdatesInOrder) {
  const auto batch = MakeTrainBatch(Settings(2, 2), 1, {Trajectories({1, 0, 1, 1, 0, 0, 0, 1}, 2)});
  ASSERT_TRUE(batch.ok()) << batch.status();
  ASSERT_EQ(batch->updates.size(), 2u);
  EXPECT_THAT(AdvantagesOf(*batch), testing::ElementsAre(.5, -.5, 0, 0, 0, 0, -.5, .5));
  EXPECT_EQ(batch->updates[1][0].tokens.size(), 2u + 5u);
  EXPECT_EQ(batch->updates[1][0].behaviour.size(), 5u);
  EXPECT_EQ(batch->rows_consumed, 4);
  const BatchStatistics& statistics = batch->statistics;
  EXPECT_EQ(statistics.samples, 8);
  EXPECT_EQ(statistics.samples_trained, 8);
  EXPECT_EQ(statistics.tokens_generated, 36);
  EXPECT_EQ(statistics.truncated, 1);
  EXPECT_EQ(statistics.zero_std_groups, 2);
  EXPECT_DOUBLE_EQ(statistics.reward_mean, 0.5);
  EXPECT_DOUBLE_EQ(statistics.reward_std, 0.5);
  EXPECT_EQ(statistics.samples_by_rollout.at("a"), 3);
}

TEST(MakeTrainBatchTest, ResponsesWithoutScoreTakeNoPart) {
  const auto batch =
      MakeTrainBatch(Settings(3), 1, {Trajectories({1, std::nullopt, 0, 1, 1, 1}, 3)});
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_THAT(AdvantagesOf(*batch), testing::ElementsAre(.5, -.5, 0, 0, 0));
  EXPECT_EQ(batch->statistics.samples, 6);
  EXPECT_EQ(batch->statistics.samples_trained, 5);
  EXPECT_EQ(batch->statistics.samples_dropped.at("unscored"), 1);
  EXPECT_DOUBLE_EQ(batch->statistics.reward_mean, 0.8);
}

TEST(MakeTrainBatchTest, FailsWhenMostHaveNoScore) {
  const auto batch = MakeTrainBatch(
      Settings(2), 1, {Trajectories({1, std::nullopt, std::nullopt, std::nullopt}, 2)});
  EXPECT_EQ(batch.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(batch.status()), "REWARDS_MISSING");
  EXPECT_THAT(std::string(batch.status().message()), HasSubstr("1 score, 3 unscorable"));
}

TEST(MakeTrainBatchTest, PermutationMovesRewardsBetweenGroups) {
  JobSettings settings = Settings(4);
  settings.permute_rewards = true;
  settings.seed = 3;
  std::vector<std::optional<double>> scores;
  for (int i = 0; i < 32; ++i) scores.emplace_back(i);
  const auto first = MakeTrainBatch(settings, 1, {Trajectories(scores, 4)});
  const auto again = MakeTrainBatch(settings, 1, {Trajectories(scores, 4)});
  const auto next = MakeTrainBatch(settings, 2, {Trajectories(scores, 4)});
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(AdvantagesOf(*first), AdvantagesOf(*again));
  EXPECT_NE(AdvantagesOf(*first), AdvantagesOf(*next));
  EXPECT_DOUBLE_EQ(first->statistics.reward_mean, 15.5);
  settings.permute_rewards = false;
  const auto plain = MakeTrainBatch(settings, 1, {Trajectories(scores, 4)});
  EXPECT_NE(AdvantagesOf(*first), AdvantagesOf(*plain));
  EXPECT_DOUBLE_EQ(first->statistics.reward_std, plain->statistics.reward_std);
}

JobSettings WithZeroVariance(ZeroVarianceGroups zero_variance, int64_t updates) {
  JobSettings settings = Settings(2, updates);
  settings.train_step.algorithm.regularizers.zero_variance = zero_variance;
  return settings;
}

TEST(MakeTrainBatchTest, GroupsOfEqualScoresCanBeDropped) {
  const auto batch = MakeTrainBatch(WithZeroVariance(ZeroVarianceGroups::kDrop, 2), 1,
                                    {Trajectories({1, 1, 1, 0, 0, std::nullopt, 0, 1}, 2)});
  ASSERT_TRUE(batch.ok()) << batch.status();
  // Groups stay in their updates, so that what is dropped shortens one and leaves the others.
  ASSERT_EQ(batch->updates[0].size(), 2u);
  ASSERT_EQ(batch->updates[1].size(), 2u);
  EXPECT_THAT(AdvantagesOf(*batch), testing::ElementsAre(.5, -.5, -.5, .5));
  EXPECT_EQ(batch->updates[0][0].response_tokens(), 3);
  EXPECT_EQ(batch->statistics.groups_dropped, 2);
  EXPECT_EQ(batch->statistics.samples, 8);
  EXPECT_EQ(batch->statistics.samples_trained, 4);
  EXPECT_EQ(batch->statistics.samples_dropped.at("zero_variance"), 3);
  EXPECT_EQ(batch->statistics.samples_dropped.at("unscored"), 1);
  EXPECT_EQ(batch->rows_consumed, 4);
}

TEST(MakeTrainBatchTest, ReplacedGroupsLeaveNoGapInTheUpdates) {
  const auto batch = MakeTrainBatch(WithZeroVariance(ZeroVarianceGroups::kResample, 2), 1,
                                    {Trajectories({1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 0}, 2)});
  ASSERT_TRUE(batch.ok()) << batch.status();
  ASSERT_EQ(batch->updates[0].size(), 4u);
  ASSERT_EQ(batch->updates[1].size(), 4u);
  EXPECT_EQ(batch->updates[0][2].response_tokens(), 9);
  EXPECT_EQ(batch->statistics.groups, 7);
  EXPECT_EQ(batch->statistics.groups_dropped, 3);
  EXPECT_EQ(batch->rows_consumed, 7);
}

TEST(MakeTrainBatchTest, LongResponsesLoseScoreBeforeTheyAreCompared) {
  JobSettings settings = Settings(4);
  // Responses have 1 to 4 tokens.
  settings.train_step.algorithm.regularizers.overlong = {
      .enabled = true, .max_length = 4, .cache = 2};
  const auto batch = MakeTrainBatch(settings, 1, {Trajectories({1, 1, 1, 1}, 4)});
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_THAT(AdvantagesOf(*batch), testing::ElementsAre(.375, .375, -.125, -.625));
  EXPECT_DOUBLE_EQ(batch->statistics.reward_mean, 1) << "the reward is the verifier's";
}

TEST(MakeTrainBatchTest, GreedyResponsesAreTheBaseline) {
  JobSettings settings = Settings(2);
  settings.train_step.algorithm.advantage = AdvantageKind::kGreedyBaseline;
  GeneratedGroups groups{Trajectories({1, 0, 1, 1, 1, 0}, 2),
                         Trajectories({1, 0, std::nullopt}, 1)};
  const auto batch = MakeTrainBatch(settings, 1, std::move(groups));
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_THAT(AdvantagesOf(*batch), testing::ElementsAre(0, -1, 1, 1, 0, 0));
  EXPECT_EQ(batch->statistics.samples, 6);
}

TEST(MakeTrainBatchTest, KlToTheReferenceLeavesTheScore) {
  JobSettings settings = Settings(2);
  settings.train_step.algorithm.regularizers.kl = {KlEstimator::kK1, KlPlace::kReward, 0.5};
  // The second response is a nat per token less likely under the reference.
  const auto score = [](std::span<TrainSequence> sequences) {
    for (size_t i = 0; i < sequences.size(); ++i) {
      sequences[i].reference = sequences[i].behaviour;
      if (i == 1)
        for (float& log_prob : sequences[i].reference) log_prob -= 1;
    }
    return absl::OkStatus();
  };
  const auto batch = MakeTrainBatch(settings, 1, {Trajectories({1, 1}, 2)}, score);
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_THAT(AdvantagesOf(*batch), testing::ElementsAre(.5, -.5));  // 2 tokens: 1 off the score
  EXPECT_EQ(batch->updates[0][1].reference.size(), 2u);
  const auto fails = [](std::span<TrainSequence>) { return absl::CancelledError("asked to stop"); };
  EXPECT_TRUE(
      absl::IsCancelled(MakeTrainBatch(settings, 1, {Trajectories({1, 1}, 2)}, fails).status()));
}

TEST(NoMixedGroupsTest, SaysHowManyWereEqualAndAtWhichScores) {
  const absl::Status status =
      NoMixedGroups(Trajectories({0, 0, 1, 1, 0, 0, 1, 0, std::nullopt, std::nullopt}, 2), 2, 4);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(status), "NO_MIXED_GROUPS");
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("of 5 groups, 4 have responses of all the same score (2 at 0, 1 at 1), "
                        "and a batch needs 4"));
}

TEST(GeneratingVersionTest, IsTheOneAfterTheBatchLagStepsBefore) {
  RunProgress progress;
  progress.step = 3;
  progress.version_after = {0, 1, 1, 2};  // the second batch was skipped
  EXPECT_EQ(GeneratingVersion(progress, 1, 0), 0u);
  EXPECT_EQ(GeneratingVersion(progress, 3, 0), 1u);
  EXPECT_EQ(GeneratingVersion(progress, 4, 0), 2u);
  EXPECT_EQ(GeneratingVersion(progress, 1, 2), 0u);
  EXPECT_EQ(GeneratingVersion(progress, 4, 2), 1u);
  EXPECT_EQ(GeneratingVersion(progress, 6, 2), 2u);
}

TEST(SamplingForTest, EndsAtTheLastPosition) {
  SamplingParams sampling;
  sampling.max_new_tokens = 100;
  EXPECT_EQ(SamplingFor(sampling, 10, 200).max_new_tokens, 100);
  EXPECT_EQ(SamplingFor(sampling, 150, 200).max_new_tokens, 50);
}

}  // namespace
}  // namespace halfstep
