// SPDX-License-Identifier: Apache-2.0
// Collecting samples in any order of arrival.
#include "learner_server/data/trajectory_buffer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

GroupAssignment Group(uint64_t ordinal, uint32_t samples, Purpose purpose = Purpose::kTrain) {
  GroupAssignment assignment;
  assignment.key = {purpose, ordinal};
  assignment.prompt = {static_cast<int32_t>(ordinal), 1};
  assignment.samples = samples;
  return assignment;
}

Sample Response(uint32_t index, int32_t token) {
  Sample sample;
  sample.index = index;
  sample.tokens = {token, token};
  sample.log_probs = {-1, -1};
  return sample;
}

// The score of a response is its first token, or 100 plus it when the answer is "more".
void ScoreAtOnce(const std::vector<int32_t>& response, const std::string& answer,
                 std::function<void(Reward)> done) {
  done({RewardOutcome::kScore, response[0] + (answer == "more" ? 100.0 : 0.0), ""});
}

const absl::Time kSoon = absl::Now() + absl::Seconds(30);

TEST(TrajectoryBufferTest, GivesCanonicalOrderWhateverTheArrival) {
  TrajectoryBuffer buffer(ScoreAtOnce);
  buffer.Expect(Group(7, 2), "");
  buffer.Expect(Group(8, 2), "more");
  buffer.OnSample(Group(8, 2), "b", Response(1, 4));
  buffer.OnSample(Group(7, 2), "a", Response(1, 2));
  buffer.OnSample(Group(8, 2), "b", Response(0, 3));
  const std::vector<GroupKey> keys{{Purpose::kTrain, 7}, {Purpose::kTrain, 8}};
  EXPECT_FALSE(buffer.Await(keys, absl::Now()).complete());
  buffer.OnSample(Group(7, 2), "a", Response(0, 1));
  const auto progress = buffer.Await(keys, kSoon);
  EXPECT_TRUE(progress.complete());
  EXPECT_EQ(progress.expected, 4);
  std::vector<std::pair<double, std::string>> taken;
  for (const Trajectory& trajectory : buffer.Take(keys)) {
    EXPECT_EQ(trajectory.prompt[0], static_cast<int32_t>(trajectory.key.ordinal));
    taken.emplace_back(trajectory.reward.score, trajectory.rollout_id);
  }
  EXPECT_THAT(taken, ElementsAre(Pair(1, "a"), Pair(2, "a"), Pair(103, "b"), Pair(104, "b")));
}

TEST(TrajectoryBufferTest, WaitEndsWithTheLastScore) {
  std::vector<std::function<void()>> scores;
  TrajectoryBuffer buffer([&](const auto&, const auto&, std::function<void(Reward)> done) {
    scores.push_back([done = std::move(done)] { done({RewardOutcome::kScore, 1, ""}); });
  });
  buffer.Expect(Group(0, 2), "");
  buffer.OnSample(Group(0, 2), "a", Response(0, 1));
  buffer.OnSample(Group(0, 2), "a", Response(1, 1));
  const std::vector<GroupKey> keys{{Purpose::kTrain, 0}};
  const auto before = buffer.Await(keys, absl::Now());
  EXPECT_EQ(before.received, 2);
  EXPECT_EQ(before.scored, 0);
  std::thread scorer([&] {
    for (const auto& score : scores) score();
  });
  EXPECT_TRUE(buffer.Await(keys, kSoon).complete());
  scorer.join();
}

TEST(TrajectoryBufferTest, LostGroupEndsTheWait) {
  TrajectoryBuffer buffer(ScoreAtOnce);
  buffer.Expect(Group(3, 1), "");
  buffer.Expect(Group(4, 1), "");
  buffer.OnGroupLost(Group(4, 1), absl::AbortedError("five rollouts died of it"));
  const auto progress =
      buffer.Await(std::vector<GroupKey>{{Purpose::kTrain, 3}, {Purpose::kTrain, 4}}, kSoon);
  EXPECT_FALSE(progress.complete());
  EXPECT_EQ(progress.lost.message(), "five rollouts died of it");
}

TEST(TrajectoryBufferTest, CountsTrainingSamplesOnly) {
  TrajectoryBuffer buffer(ScoreAtOnce);
  buffer.Expect(Group(0, 1), "");
  buffer.Expect(Group(0, 1, Purpose::kEval), "");
  buffer.OnSample(Group(0, 1), "a", Response(0, 5));
  buffer.OnSample(Group(0, 1, Purpose::kEval), "a", Response(0, 6));
  buffer.OnSample(Group(9, 1), "a", Response(0, 7));  // nobody expects it
  EXPECT_EQ(buffer.counters().samples_admitted, 1);
  EXPECT_EQ(buffer.counters().samples_buffered, 1);
  EXPECT_EQ(buffer.counters().tokens_admitted, 2);
  buffer.Take(std::vector<GroupKey>{{Purpose::kTrain, 0}});
  EXPECT_EQ(buffer.counters().samples_admitted, 1);
  EXPECT_EQ(buffer.counters().samples_buffered, 0);
}

}  // namespace
}  // namespace halfstep
