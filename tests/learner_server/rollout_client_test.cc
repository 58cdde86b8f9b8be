// SPDX-License-Identifier: Apache-2.0
// Waiting for rollouts: every way in which a wait can end.
#include "learner_server/training/rollout_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/error_reason.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Keeps what it is given, and answers when a test says so.
class ScriptedPool final : public RolloutPool {
 public:
  void BeginJob(const RolloutJob&, SampleSink* sink) override { sink_ = sink; }
  void EndJob() override {}
  void Publish(std::shared_ptr<const WeightSet>) override {}
  void ReleaseWeightsBelow(uint64_t) override {}
  void Assign(std::vector<GroupAssignment> groups) override { groups_ = std::move(groups); }
  RolloutPoolStatus Status() const override {
    RolloutPoolStatus status;
    status.rollouts_serving = serving_;
    status.waiting_for = "rollout r7 with group 5";
    return status;
  }

  void Answer(const GroupAssignment& assignment) {
    for (uint32_t index = 0; index < assignment.samples; ++index) {
      Sample sample;
      sample.index = index;
      sample.tokens = {1};
      sample.log_probs = {-1};
      sink_->OnSample(assignment, "r7", std::move(sample));
    }
  }

  SampleSink* sink_ = nullptr;
  std::vector<GroupAssignment> groups_;
  int serving_ = 1;
};

class RolloutClientTest : public testing::Test {
 protected:
  RolloutClientTest() {
    options_.batch_timeout = absl::Milliseconds(250);
    options_.no_rollout_timeout = absl::Milliseconds(150);
    options_.join_grace = absl::ZeroDuration();
  }

  absl::StatusOr<CollectedGroups> AssignAndCollect(
      const std::function<void(ScriptedPool&)>& answer) {
    RolloutJob job;
    job.epoch = 4;
    RolloutClient client(job, options_, &pool_, &control_,
                         [](const auto&, const auto&, std::function<void(Reward)> done) {
                           done({RewardOutcome::kScore, 1, ""});
                         });
    std::vector<GroupTask> tasks(2);
    for (uint64_t i = 0; i < 2; ++i) {
      tasks[i].assignment.key = {Purpose::kTrain, i};
      tasks[i].assignment.samples = 3;
    }
    client.Assign(std::move(tasks));
    answer(pool_);
    return client.Collect({{Purpose::kTrain, 0}, {Purpose::kTrain, 1}});
  }

  RolloutClientOptions options_;
  ScriptedPool pool_;
  RecordingControl control_;
};

TEST_F(RolloutClientTest, CollectsCompleteGroups) {
  const auto collected = AssignAndCollect([](ScriptedPool& pool) {
    for (const GroupAssignment& group : pool.groups_) {
      EXPECT_EQ(group.job_epoch, 4u);
      pool.Answer(group);
    }
  });
  ASSERT_TRUE(collected.ok()) << collected.status();
  EXPECT_EQ(collected->trajectories.size(), 6u);
}

TEST_F(RolloutClientTest, TimeoutSaysWhomItWaitedFor) {
  const auto collected = AssignAndCollect([](ScriptedPool& pool) { pool.Answer(pool.groups_[1]); });
  EXPECT_EQ(collected.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(ReasonOf(collected.status()), "BATCH_TIMEOUT");
  EXPECT_THAT(std::string(collected.status().message()),
              HasSubstr("3 of 6 samples have come and 3 are scored; waiting for rollout r7"));
}

TEST_F(RolloutClientTest, NobodyServingIsANoticeAndThenATypedEnd) {
  options_.batch_timeout = absl::InfiniteDuration();
  const auto collected = AssignAndCollect([](ScriptedPool& pool) { pool.serving_ = 0; });
  EXPECT_EQ(collected.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(collected.status()), "NO_ROLLOUT");
  EXPECT_THAT(std::string(collected.status().message()),
              HasSubstr("resume the job; rollout r7 with group 5"));
  ASSERT_THAT(control_.notices(), ElementsAre("NO_ROLLOUT"));
  EXPECT_THAT(control_.events().back().notice().message(), HasSubstr("; rollout r7 with group 5"))
      << "it says why nobody serves";
}

TEST_F(RolloutClientTest, LostGroupEndsTheWait) {
  const auto collected = AssignAndCollect([](ScriptedPool& pool) {
    pool.sink_->OnGroupLost(pool.groups_[0], absl::AbortedError("tried five times"));
  });
  EXPECT_EQ(ReasonOf(collected.status()), "GROUP_LOST");
  EXPECT_THAT(std::string(collected.status().message()), HasSubstr("tried five times"));
  EXPECT_THAT(std::string(collected.status().message()), HasSubstr("resume the job"));
}

TEST_F(RolloutClientTest, RequestToStopEndsTheWait) {
  control_.RequestAfter(1, RunRequest::kStop);
  const auto collected = AssignAndCollect([this](ScriptedPool&) { control_.SetProgress(1, 0); });
  EXPECT_TRUE(absl::IsCancelled(collected.status()));
}

}  // namespace
}  // namespace halfstep
