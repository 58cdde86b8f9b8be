// SPDX-License-Identifier: Apache-2.0
// Groups that name no version: rollouts take up each new set beside their work, and a group whose
// rollout is lost is generated again as a whole.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "tests/learner_server/rollout_coordination/coordinator_fixture.h"

namespace halfstep {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class FreeVersionsTest : public CoordinatorFixture {
 protected:
  // What a rollout was told of weights, in order.
  static std::vector<std::string> OrdersOf(const FakeRollout& rollout) {
    std::vector<std::string> orders;
    for (const v1::LearnerMessage& message : rollout.outbox->messages) {
      if (message.has_prepare_weights()) {
        orders.push_back(absl::StrCat("prepare ", message.prepare_weights().manifest().version()));
      } else if (message.has_commit_weights()) {
        orders.push_back(absl::StrCat("commit ", message.commit_weights().weights().version()));
      }
    }
    return orders;
  }
};

TEST_F(FreeVersionsTest, ABusyRolloutTakesUpANewSetAndGoesOnWithItsGroups) {
  FakeRollout& rollout = Add("a");
  BeginFreeJob();
  Publish(0);
  Settle();
  AssignFree(0, 3, 0);
  Settle();
  EXPECT_EQ(rollout.groups.size(), 4u);
  Publish(1);
  Settle();
  EXPECT_EQ(rollout.version, 1u);
  EXPECT_TRUE(rollout.committed_while_busy);
  AssignFree(4, 5, 1);
  Settle();
  EXPECT_EQ(rollout.groups.size(), 6u);
  rollout.FinishAll();
  ExpectAllOnce(6);
  EXPECT_EQ(coordinator->Status().groups_reassigned, 0);
}

TEST_F(FreeVersionsTest, AGroupWaitsOnlyForTheLowestVersionThatMayBeginIt) {
  FakeRollout& rollout = Add("a");
  BeginFreeJob();
  Publish(0);
  Settle();
  Publish(1);  // the rollout does not have it yet
  AssignFree(0, 1, 1);
  AssignFree(2, 3, 0);
  while (const v1::LearnerMessage* message = rollout.Next()) {
    if (message->has_assign()) rollout.Obey(v1::LearnerMessage(*message));
  }
  EXPECT_EQ(rollout.groups.size(), 2u);
  EXPECT_TRUE(rollout.groups.contains(Train(2)) && rollout.groups.contains(Train(3)));
  EXPECT_THAT(coordinator->Status().waiting_for,
              HasSubstr("2 groups wait for a rollout that serves version 1 or later"));
}

TEST_F(FreeVersionsTest, ASetThatIsOnItsWayIsTakenUpBeforeANewerOne) {
  FakeRollout& rollout = Add("a");
  BeginFreeJob();
  Publish(0);
  Settle();
  AssignFree(0, 3, 0);
  Settle();
  Publish(1);
  Publish(2);
  EXPECT_THAT(OrdersOf(rollout), ElementsAre("prepare 0", "commit 0", "prepare 1"));
  Settle();
  EXPECT_THAT(OrdersOf(rollout), ElementsAre("prepare 0", "commit 0", "prepare 1", "commit 1",
                                             "prepare 2", "commit 2"));
  EXPECT_EQ(rollout.version, 2u);
}

// A learner that publishes twice while a rollout fetches keeps no more than the two newest sets.
TEST_F(FreeVersionsTest, ASetThatIsReleasedOnItsWayIsTakenUpAllTheSame) {
  FakeRollout& rollout = Add("a");
  BeginFreeJob();
  Publish(0);
  Settle();
  AssignFree(0, 3, 0);
  Settle();
  for (const uint64_t version : {1, 2, 3}) Publish(version);
  coordinator->ReleaseWeightsBelow(2);
  Settle();
  EXPECT_THAT(OrdersOf(rollout), ElementsAre("prepare 0", "commit 0", "prepare 1", "commit 1",
                                             "prepare 3", "commit 3"));
  EXPECT_EQ(rollout.version, 3u);
}

TEST_F(FreeVersionsTest, AnEvaluationStillNamesItsVersion) {
  FakeRollout& rollout = Add("a");
  BeginFreeJob();
  Publish(0);
  Settle();
  AssignFree(0, 1, 0);
  Publish(1);
  GroupAssignment eval = TinyGroup(Eval(0), 1);
  eval.deadline = clock.Now() + absl::Seconds(60);
  coordinator->Assign({eval});
  Settle();
  EXPECT_EQ(rollout.version, 1u);
  EXPECT_TRUE(rollout.groups.contains(Eval(0)));
  EXPECT_FALSE(rollout.wrong_version);
  // Its work must be finished by this version, so a later one waits.
  Publish(2);
  Settle();
  EXPECT_EQ(rollout.version, 1u);
  rollout.Finish(Eval(0));
  Settle();
  EXPECT_EQ(rollout.version, 2u);
}

TEST_F(FreeVersionsTest, AnIdleRolloutGetsNoCopyOfAFreeGroup) {
  FakeRollout& busy = Add("a");
  BeginFreeJob();
  Publish(0);
  Settle();
  AssignFree(0, 1, 0);
  Settle();
  Pass(absl::Seconds(1));
  busy.Finish(Train(0));  // so that there is a mean time
  Add("b");
  Settle();
  Pass(absl::Seconds(20));
  EXPECT_EQ(rollouts[1].assigned, 0);
}

// ---- one draw of one rollout

TEST_F(FreeVersionsTest, AGroupWhoseRolloutDiesIsGeneratedAgainAsAWhole) {
  FakeRollout& first = Add("a");
  BeginFreeJob();
  Publish(0);
  Settle();
  AssignFree(0, 1, 0, /*samples=*/4);
  Settle();
  first.Finish(Train(0));
  for (const uint32_t index : {2, 0, 3}) first.SendSample(Train(1), index);
  ExpectAllOnce(1, 4);
  first.Close();
  FakeRollout& second = Add("b");
  Settle();
  ASSERT_TRUE(second.groups.contains(Train(1)));
  second.SendSample(Train(1), 0);
  ExpectAllOnce(1, 4);
  for (const uint32_t index : {1, 2, 3}) second.SendSample(Train(1), index);
  ExpectAllOnce(2, 4);
  EXPECT_EQ(sink.by_rollout["a"], 4);
  EXPECT_EQ(sink.by_rollout["b"], 4);
  EXPECT_EQ(sink.streams.at(Train(1)).size(), 1u);
  EXPECT_EQ(coordinator->Status().groups_reassigned, 1);
  // Each is counted once, here or by whoever trains on it.
  EXPECT_EQ(Dropped("abandoned"), 3);
  EXPECT_EQ(Dropped("duplicate"), 0);
  EXPECT_EQ(metrics.samples.Value(), 3);
}

TEST_F(FreeVersionsTest, AGroupWithARefusedSampleIsGeneratedAgainAsAWhole) {
  FakeRollout& rollout = Add("a");
  BeginFreeJob();
  Publish(0);
  Settle();
  AssignFree(0, 0, 0);
  Settle();
  const GroupAssignment assignment = rollout.groups.at(Train(0));
  Sample cancelled = FakeRollout::GoodSample(assignment, 1);
  cancelled.finish_reason = FinishReason::kCancelled;
  rollout.SendSamples({{Train(0), FakeRollout::GoodSample(assignment, 0)}, {Train(0), cancelled}});
  EXPECT_THAT(sink.samples, IsEmpty());
  EXPECT_EQ(Dropped("abandoned"), 1);
  Settle();
  rollout.Finish(Train(0));
  ExpectAllOnce(1);
}

TEST_F(FreeVersionsTest, WhatIsKeptOfAGroupWhenTheJobEndsIsCounted) {
  FakeRollout& rollout = Add("a");
  BeginFreeJob();
  Publish(0);
  Settle();
  AssignFree(0, 0, 0);
  Settle();
  rollout.SendSample(Train(0), 1);
  coordinator->EndJob();
  EXPECT_THAT(sink.samples, IsEmpty());
  EXPECT_EQ(Dropped("abandoned"), 1);
}

// ---- versions that cannot be

TEST_F(FreeVersionsTest, ASampleOfAVersionThatCannotBeIsRefusedAndNamed) {
  CoordinatorOptions options;
  options.max_reassignments = 0;
  NewCoordinator(options);
  FakeRollout& rollout = Add("a");
  BeginFreeJob();
  for (const uint64_t version : {3, 4, 5}) Publish(version);
  coordinator->ReleaseWeightsBelow(5);
  Settle();
  AssignFree(7, 9, 4);
  Settle();
  ASSERT_EQ(rollout.groups.size(), 3u);
  const auto finish_as = [&](uint64_t group, uint64_t version) {
    rollout.groups.at(Train(group)).version = version;
    rollout.Finish(Train(group));
  };
  finish_as(7, 3);  // too old to begin it
  finish_as(8, 6);  // not published yet
  finish_as(9, 4);  // released, and still in the rollout's hands
  EXPECT_EQ(Dropped("wrong_version"), 4);
  ExpectAllOnce(1);
  ASSERT_EQ(sink.lost.size(), 2u);
  EXPECT_EQ(ReasonOf(sink.lost.at(Train(7))), "GROUP_LOST");
  EXPECT_THAT(
      std::string(sink.lost.at(Train(7)).message()),
      AllOf(HasSubstr("training group 7 "), HasSubstr("last by 'a': a sample was refused, "),
            HasSubstr("wrong_version: begun by version 3, the lowest that may is 4")));
  EXPECT_THAT(
      std::string(sink.lost.at(Train(8)).message()),
      AllOf(HasSubstr("training group 8 "), HasSubstr("last by 'a': a sample was refused, "),
            HasSubstr("wrong_version: generated by version 6, which was never published")));
}

}  // namespace
}  // namespace halfstep
