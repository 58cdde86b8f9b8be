// SPDX-License-Identifier: Apache-2.0
// Balance, silence, death, deadlines, copies.
#include "common/base/error_reason.h"
#include "tests/learner_server/rollout_coordination/coordinator_fixture.h"

namespace halfstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class RolloutReassignmentTest : public CoordinatorFixture {
 protected:
  // Two rollouts that serve version 0.
  void TwoServing(Profile profile = Profile::kBitwise) {
    Add("a");
    Add("b");
    BeginJob(profile);
    Publish(0);
    Settle();
  }
  FakeRollout& a() { return rollouts[0]; }
  FakeRollout& b() { return rollouts[1]; }
};

TEST_F(RolloutReassignmentTest, SharesGroupsEvenly) {
  TwoServing();
  Add("c");
  Settle();
  Assign(0, 31, 0);
  Settle();
  for (const FakeRollout& rollout : rollouts) {
    EXPECT_GE(rollout.groups.size(), 10u);
    EXPECT_LE(rollout.groups.size(), 11u);
  }
}

TEST_F(RolloutReassignmentTest, TheFirstToServeLeavesTheOthersTheirShare) {
  Add("a");
  Add("b");
  BeginJob();
  Publish(0);
  Assign(0, 9, 0);
  for (int i = 0; i < 5; ++i) a().Obey();
  EXPECT_EQ(a().groups.size(), 5u);
  Settle();
  EXPECT_EQ(b().groups.size(), 5u);
}

TEST_F(RolloutReassignmentTest, OneAloneDoesEverythingWhileAnotherNeverArrives) {
  Add("a");
  Add("b");
  BeginJob();
  Publish(0);
  Assign(0, 9, 0);
  for (int i = 0; i < 20; ++i) {
    a().Obey();
    if (!a().groups.empty()) a().Finish(a().groups.begin()->first);
  }
  ExpectAllOnce(10);
}

TEST_F(RolloutReassignmentTest, CountsSamplesNotGroups) {
  TwoServing();
  std::vector<GroupAssignment> groups = {TinyGroup(Train(0), 0, 8)};
  for (uint64_t i = 1; i <= 4; ++i) groups.push_back(TinyGroup(Train(i), 0, 2));
  coordinator->Assign(groups);
  Settle();
  EXPECT_EQ(a().groups.size(), 1u);
  EXPECT_EQ(b().groups.size(), 4u);
}

TEST_F(RolloutReassignmentTest, GroupsOfADeadRolloutGoElsewhere) {
  TwoServing();
  Assign(0, 3, 0);
  Settle();
  const GroupKey key = a().groups.begin()->first;
  a().SendSample(key, 0);
  a().Close();
  EXPECT_EQ(coordinator->Status().groups_reassigned, 2);
  EXPECT_EQ(metrics.groups_reassigned.Value(), 2);
  b().Obey();
  EXPECT_EQ(b().groups.size(), 4u);
  b().FinishAll();
  ExpectAllOnce(4);
  EXPECT_EQ(Dropped("duplicate"), 1);
}

TEST_F(RolloutReassignmentTest, ALeavingRolloutFinishesAndGetsNothingMore) {
  TwoServing();
  Assign(0, 3, 0);
  Settle();
  v1::RolloutMessage leaving;
  leaving.mutable_leaving();
  a().Put(leaving);
  Assign(4, 7, 0);
  Settle();
  EXPECT_TRUE(a().released);
  EXPECT_EQ(a().groups.size(), 2u);
  EXPECT_EQ(b().groups.size(), 6u);
  a().FinishAll();
  a().Close();
  EXPECT_EQ(coordinator->Status().groups_reassigned, 0);
  b().FinishAll();
  ExpectAllOnce(8);
}

TEST_F(RolloutReassignmentTest, ASilentRolloutLosesItsGroupsAndMayReturn) {
  TwoServing();
  Assign(0, 3, 0);
  Settle();
  const auto held = a().groups;
  for (int i = 0; i < 11; ++i) {
    clock.Advance(absl::Seconds(1));
    b().SendHeartbeat();
    coordinator->Tick();
  }
  EXPECT_EQ(coordinator->Status().rollouts_serving, 1);
  EXPECT_EQ(coordinator->Status().groups_reassigned, 2);
  EXPECT_EQ(registry.Gauges(metric::kRolloutsConnected)["suspect"].Value(), 1);
  b().Obey();
  EXPECT_EQ(b().groups.size(), 4u);
  // It speaks again: what it made meanwhile is not wanted, but it serves on.
  a().SendSample(held.begin()->first, 0);
  EXPECT_EQ(Dropped("not_assigned"), 1);
  EXPECT_EQ(coordinator->Status().rollouts_serving, 2);
  Settle();
  EXPECT_TRUE(a().groups.empty());
  Assign(4, 7, 0);
  Settle();
  EXPECT_FALSE(a().groups.empty());
  a().FinishAll();
  b().FinishAll();
  ExpectAllOnce(8);
}

TEST_F(RolloutReassignmentTest, AStuckEngineLosesItsGroupsThoughItsServerIsHeard) {
  CoordinatorOptions options;
  options.stuck_after = absl::Seconds(20);
  NewCoordinator(options);
  TwoServing(Profile::kFast);
  int64_t a_progress = 7;  // by its own clock
  int64_t b_progress = 1;
  const auto pass = [&](int seconds, bool a_moves) {
    for (int i = 0; i < seconds; ++i) {
      clock.Advance(absl::Seconds(1));
      a().SendHeartbeat(a_moves ? ++a_progress : a_progress);
      b().SendHeartbeat(++b_progress);
      coordinator->Tick();
    }
  };
  pass(100, /*a_moves=*/false);
  EXPECT_EQ(coordinator->Status().rollouts_serving, 2) << "an idle engine has no need to move";
  Assign(0, 3, 0);
  Settle();
  ASSERT_EQ(a().groups.size(), 2u);
  // A switch on its way must not be what brings it back.
  Publish(1);
  Assign(4, 5, 1);
  pass(19, /*a_moves=*/false);
  EXPECT_EQ(coordinator->Status().groups_reassigned, 0);
  pass(1, /*a_moves=*/false);
  EXPECT_EQ(coordinator->Status().rollouts_serving, 1);
  EXPECT_EQ(coordinator->Status().groups_reassigned, 2);
  EXPECT_EQ(registry.Gauges(metric::kRolloutsConnected)["suspect"].Value(), 1);
  EXPECT_THAT(coordinator->Status().waiting_for,
              AllOf(HasSubstr("rollout 'a' is SUSPECT version 0, "),
                    HasSubstr(", without progress for 20s; rollout 'b' is SERVING")));
  Settle();
  EXPECT_TRUE(a().groups.empty()) << "it was told to forget them";
  EXPECT_EQ(b().groups.size(), 4u);
  pass(30, /*a_moves=*/false);
  EXPECT_EQ(coordinator->Status().rollouts_serving, 1) << "it answered, and stands still";
  pass(1, /*a_moves=*/true);
  EXPECT_EQ(coordinator->Status().rollouts_serving, 2);
  for (int i = 0; i < 3; ++i) {
    Settle();
    a().FinishAll();
    b().FinishAll();
  }
  ExpectAllOnce(6);
}

TEST_F(RolloutReassignmentTest, SilenceBeyondTheTimeoutIsDeath) {
  TwoServing();
  for (int i = 0; i < 30; ++i) {
    clock.Advance(absl::Seconds(1));
    b().SendHeartbeat();
    coordinator->Tick();
  }
  ASSERT_TRUE(a().outbox->closed);
  EXPECT_EQ(ReasonOf(*a().outbox->closed), "ROLLOUT_SILENT");
  EXPECT_FALSE(b().outbox->closed);
}

TEST_F(RolloutReassignmentTest, ASuspectThatWasSwitchingGoesOnWhereItWas) {
  Add("a");
  BeginJob();
  Publish(0);
  while (a().version == UINT64_MAX) {
    const v1::LearnerMessage* message = a().Next();
    ASSERT_NE(message, nullptr);
    if (!message->has_commit_weights()) {
      a().Obey(v1::LearnerMessage(*message));
      continue;
    }
    const v1::LearnerMessage commit = *message;
    for (int i = 0; i < 12; ++i) {
      clock.Advance(absl::Seconds(1));
      coordinator->Tick();
    }
    EXPECT_EQ(coordinator->Status().rollouts_serving, 0);
    a().SendHeartbeat();
    EXPECT_EQ(coordinator->Status().rollouts_serving, 1);
    a().Obey(commit);
  }
  EXPECT_EQ(coordinator->Status().rollouts_serving, 1);
}

TEST_F(RolloutReassignmentTest, ASwitchOfVersionsIsNoLossOfARollout) {
  Add("a");
  BeginJob();
  Publish(0);
  Settle();
  Publish(1);
  while (const v1::LearnerMessage* message = a().Next()) {
    EXPECT_EQ(coordinator->Status().rollouts_serving, 1);
    a().Obey(v1::LearnerMessage(*message));
  }
  EXPECT_EQ(a().version, 1u);
  EXPECT_EQ(coordinator->Status().rollouts_serving, 1);
}

TEST_F(RolloutReassignmentTest, AGroupPastItsDeadlineGoesToAnother) {
  TwoServing(Profile::kFast);
  Assign(0, 0, 0);
  Settle();
  ASSERT_EQ(a().groups.size(), 1u);
  Pass(absl::Seconds(61));
  EXPECT_TRUE(a().groups.empty()) << "it was told to forget the group";
  EXPECT_EQ(b().groups.size(), 1u);
  EXPECT_EQ(coordinator->Status().groups_reassigned, 1);
  b().FinishAll();
  ExpectAllOnce(1);
}

TEST_F(RolloutReassignmentTest, WaitingDoesNotCountAgainstTheDeadline) {
  BeginJob();
  Publish(0);
  Assign(0, 0, 0);
  clock.Advance(absl::Hours(1));
  coordinator->Tick();
  Add("a");
  Settle();
  Pass(absl::Seconds(59));
  EXPECT_EQ(a().groups.size(), 1u);
  EXPECT_EQ(coordinator->Status().groups_reassigned, 0);
  Pass(absl::Seconds(1));
  EXPECT_EQ(coordinator->Status().groups_reassigned, 1);
}

TEST_F(RolloutReassignmentTest, AGroupIsGivenUpAfterItsReassignments) {
  TwoServing(Profile::kFast);
  Assign(0, 0, 0);
  Settle();
  for (int i = 0; i < 6; ++i) {
    EXPECT_TRUE(sink.lost.empty());
    Pass(absl::Seconds(61));
  }
  ASSERT_EQ(sink.lost.size(), 1u);
  EXPECT_EQ(ReasonOf(sink.lost.at(Train(0))), "GROUP_LOST");
  EXPECT_THAT(std::string(sink.lost.at(Train(0)).message()), HasSubstr("given out 6 times"));
  EXPECT_EQ(coordinator->Status().groups_reassigned, 5);
}

TEST_F(RolloutReassignmentTest, AGroupThatIsGivenUpSaysWhatTheLastRolloutReported) {
  CoordinatorOptions options;
  options.max_reassignments = 0;
  NewCoordinator(options);
  TwoServing();
  Assign(0, 1, 0);
  Settle();
  v1::RolloutMessage failure;
  failure.mutable_failure()->set_job_epoch(1);
  failure.mutable_failure()->set_reason("NON_FINITE_LOGITS");
  failure.mutable_failure()->set_message("layer 3");
  a().Put(failure);
  for (FakeRollout* rollout : {&a(), &b()}) {
    const auto [key, assignment] = *rollout->groups.begin();
    std::vector<KeyedSample> samples;
    for (uint32_t i = 0; i < assignment.samples; ++i) {
      samples.push_back({key, FakeRollout::GoodSample(assignment, i)});
      if (rollout == &a()) samples.back().sample.finish_reason = FinishReason::kCancelled;
    }
    if (rollout == &b()) samples[0].sample.tokens[0] = 8;
    rollout->SendSamples(samples);
  }
  EXPECT_THAT(std::string(sink.lost.at(a().groups.begin()->first).message()),
              HasSubstr("last by 'a': it handed the group back, and reported NON_FINITE_LOGITS: "
                        "layer 3"));
  EXPECT_THAT(std::string(sink.lost.at(b().groups.begin()->first).message()),
              HasSubstr("last by 'b': a sample was refused, token_out_of_range: token id 8"));
}

// ---- copies

TEST_F(RolloutReassignmentTest, AnIdleRolloutGetsACopyOfASlowGroup) {
  TwoServing();
  Assign(0, 3, 0);
  Settle();
  clock.Advance(absl::Seconds(2));
  a().FinishAll();
  Settle();
  EXPECT_TRUE(a().groups.empty()) << "two seconds are not slow";
  b().SendSample(b().groups.begin()->first, 0);
  Pass(absl::Seconds(3));
  ASSERT_EQ(a().groups.size(), 1u) << "half of the slow ones, at most once each";
  const GroupKey copied = a().groups.begin()->first;
  EXPECT_TRUE(b().groups.contains(copied));
  a().FinishAll();
  Settle();
  EXPECT_FALSE(b().groups.contains(copied)) << "the slower one was told to forget it";
  EXPECT_EQ(Dropped("duplicate"), copied == Train(1) ? 1 : 0);
  b().FinishAll();
  a().FinishAll();
  ExpectAllOnce(4);
  EXPECT_EQ(coordinator->Status().groups_reassigned, 0);
}

TEST_F(RolloutReassignmentTest, FastJobsMakeNoCopies) {
  TwoServing(Profile::kFast);
  Assign(0, 3, 0);
  Settle();
  clock.Advance(absl::Seconds(2));
  a().FinishAll();
  Pass(absl::Seconds(30));
  EXPECT_TRUE(a().groups.empty());
}

TEST_F(RolloutReassignmentTest, ACopyOutlivesTheOriginal) {
  TwoServing();
  Assign(0, 1, 0);
  Settle();
  clock.Advance(absl::Seconds(1));
  a().FinishAll();
  Pass(absl::Seconds(5));
  ASSERT_EQ(a().groups.size(), 1u);
  b().Close();
  EXPECT_EQ(coordinator->Status().groups_reassigned, 0);
  a().FinishAll();
  ExpectAllOnce(2);
}

}  // namespace
}  // namespace halfstep
