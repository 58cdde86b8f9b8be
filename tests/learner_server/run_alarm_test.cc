// SPDX-License-Identifier: Apache-2.0
// What a run does about an alarm: it warns, pauses or fails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/error_reason.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class RunAlarmTest : public TinyRunTest {};

// No response earns anything, so all groups are equal from the first step on.
v1::TrainingJobSpec HopelessSpec(const std::string& root, const std::string& output,
                                 v1::HealthAction action) {
  WriteText(root + "/hopeless.jsonl",
            "{\"prompt\":\"1+1=\",\"answer\":\"never\"}\n"
            "{\"prompt\":\"1+2=\",\"answer\":\"never\"}\n");
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec(output, 12);
  spec.mutable_data()->set_train("hopeless.jsonl");
  (*spec.mutable_health())["constant_reward"] = action;
  return spec;
}

constexpr char kConstantRewardRaised[] =
    "halfstep_learner_health_alarm{alarm=\"constant_reward\"} 1";
constexpr char kConstantRewardQuiet[] =
    "halfstep_learner_health_alarm{alarm=\"constant_reward\"} 0";

TEST_F(RunAlarmTest, AnAlarmWarnsOnceAndTheJobGoesOn) {
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  EXPECT_THAT(learner.Scrape(), HasSubstr(kConstantRewardQuiet));
  const auto result = learner.Run("warned", HopelessSpec(root(), "warned", v1::HEALTH_ACTION_WARN));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->outcome, RunOutcome::kSucceeded);
  EXPECT_THAT(learner.control().notices(), ElementsAre("CONSTANT_REWARD"));
  EXPECT_THAT(learner.Scrape(), HasSubstr(kConstantRewardRaised));
}

TEST_F(RunAlarmTest, AnAlarmPausesAfterACheckpointAndIsNotRaisedAgain) {
  const v1::TrainingJobSpec spec = HopelessSpec(root(), "paused", v1::HEALTH_ACTION_PAUSE);
  LocalRolloutPool pool;
  TinyLearner first(root(), &pool);
  const auto paused = first.Run("paused", spec);
  ASSERT_TRUE(paused.ok()) << paused.status();
  EXPECT_EQ(paused->outcome, RunOutcome::kPaused);
  EXPECT_EQ(paused->reason, "CONSTANT_REWARD");
  EXPECT_THAT(paused->message, HasSubstr("step 10: 100 % of the groups"));
  EXPECT_THAT(paused->message, HasSubstr("resume the job to go on"));
  EXPECT_EQ(first.control().step(), 10);
  EXPECT_THAT(first.summary().checkpoint(), HasSubstr("10"));

  TinyLearner second(root(), &pool);
  const auto resumed = second.Run("paused", spec);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_EQ(resumed->outcome, RunOutcome::kSucceeded);
  EXPECT_THAT(second.control().notices(), Not(Contains("CONSTANT_REWARD")));
  EXPECT_THAT(second.Scrape(), HasSubstr(kConstantRewardRaised));
}

TEST_F(RunAlarmTest, AnAlarmFailsTheJobWithItsReason) {
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  const auto result =
      learner.Run("unhealthy", HopelessSpec(root(), "unhealthy", v1::HEALTH_ACTION_FAIL));
  EXPECT_EQ(ReasonOf(result.status()), "CONSTANT_REWARD");
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("health.constant_reward is fail"));
  EXPECT_EQ(learner.control().step(), 10);
}

}  // namespace
}  // namespace halfstep
