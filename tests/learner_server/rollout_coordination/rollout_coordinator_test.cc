// SPDX-License-Identifier: Apache-2.0
// The sequence of messages: who is let in, what each is told and when, what is believed.
#include <functional>
#include <limits>

#include "common/base/error_reason.h"
#include "common/weight_sync/weight_proto.h"
#include "tests/learner_server/rollout_coordination/coordinator_fixture.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Message = v1::LearnerMessage;

class RolloutCoordinatorTest : public CoordinatorFixture {
 protected:
  std::vector<int> Cases(const FakeRollout& rollout) {
    std::vector<int> cases;
    for (const Message& message : rollout.outbox->messages) {
      if (!message.has_heartbeat()) cases.push_back(message.message_case());
    }
    return cases;
  }
  std::string CloseReason(const FakeRollout& rollout) {
    return rollout.outbox->closed ? ReasonOf(*rollout.outbox->closed) : "open";
  }
  void ExpectClosed(const FakeRollout& rollout, absl::StatusCode code, const std::string& reason,
                    const std::string& message) {
    ASSERT_TRUE(rollout.outbox->closed.has_value());
    EXPECT_EQ(rollout.outbox->closed->code(), code);
    EXPECT_EQ(CloseReason(rollout), reason);
    EXPECT_THAT(std::string(rollout.outbox->closed->message()), HasSubstr(message));
  }
  // What is logged while `act` runs.
  static std::string LogOf(const std::function<void()>& act) {
    ::testing::internal::CaptureStderr();
    act();
    return ::testing::internal::GetCapturedStderr();
  }
  static v1::RolloutMessage Failure(v1::RolloutFailure::Subject subject,
                                    const std::string& reason) {
    v1::RolloutMessage message;
    message.mutable_failure()->set_job_epoch(1);
    message.mutable_failure()->set_subject(subject);
    message.mutable_failure()->set_reason(reason);
    return message;
  }
  // One rollout that serves version 0 and holds groups 0 and 1.
  FakeRollout& Busy() {
    FakeRollout& rollout = Add("a");
    BeginJob();
    Publish(0);
    Settle();
    Assign(0, 1, 0);
    rollout.Obey();
    EXPECT_EQ(rollout.groups.size(), 2u);
    return rollout;
  }
};

TEST_F(RolloutCoordinatorTest, LeadsARolloutFromHelloToItsFirstGroup) {
  FakeRollout& rollout = Add("a");
  EXPECT_THAT(Cases(rollout), ElementsAre(Message::kWelcome));
  EXPECT_EQ(rollout.outbox->messages[0].welcome().learner_incarnation(), "learner-1");
  BeginJob();
  Publish(0);
  Assign(0, 0, 0);
  EXPECT_EQ(coordinator->Status().rollouts_serving, 0);
  Settle();
  EXPECT_THAT(Cases(rollout),
              ElementsAre(Message::kWelcome, Message::kLoadJob, Message::kPrepareWeights,
                          Message::kCommitWeights, Message::kAssign));
  EXPECT_EQ(coordinator->Status().rollouts_serving, 1);
  rollout.FinishAll();
  Settle();
  ExpectAllOnce(1);
  EXPECT_EQ(rollout.acknowledged, 1u);
  EXPECT_EQ(sink.by_rollout.at("a"), 2);
}

TEST_F(RolloutCoordinatorTest, ALateJoinerGetsJobAndWeightsAtOnce) {
  BeginJob();
  Publish(3);
  Assign(0, 0, 3);
  EXPECT_THAT(coordinator->Status().waiting_for, HasSubstr("no rollout server is attached"));
  Add("late");
  Settle();
  rollouts[0].FinishAll();
  ExpectAllOnce(1);
}

TEST_F(RolloutCoordinatorTest, RefusesAnotherFingerprintInBitwiseOnly) {
  BeginJob(Profile::kBitwise);
  FakeRollout stranger(coordinator.get(), {"s", "1", "other bits", 4});
  stranger.Attach();
  ExpectClosed(stranger, absl::StatusCode::kFailedPrecondition, "NUMERICS_FINGERPRINT_MISMATCH",
               "rollout 's' computes other bits (fingerprint other bits) than the learner (bits): "
               "run both on the same build");
  clock.Advance(absl::Seconds(3));
  EXPECT_THAT(coordinator->Status().waiting_for,
              HasSubstr("no rollout server is attached; rollout 's' was sent away 3s ago: "
                        "NUMERICS_FINGERPRINT_MISMATCH: the job runs in profile bitwise"));
  coordinator->EndJob();
  coordinator->BeginJob(TinyJob(Profile::kFast), &sink);
  stranger.Attach();
  EXPECT_EQ(CloseReason(stranger), "open");
  coordinator->EndJob();
  BeginJob(Profile::kBitwise);
  EXPECT_EQ(CloseReason(stranger), "NUMERICS_FINGERPRINT_MISMATCH");
}

TEST_F(RolloutCoordinatorTest, ANewerIncarnationReplacesTheOlder) {
  FakeRollout& old = Busy();
  FakeRollout young(coordinator.get(), {"a", "2", "bits", 4});
  young.Attach();
  ExpectClosed(old, absl::StatusCode::kAborted, "REPLACED",
               "incarnation 2 of rollout 'a' took its place");
  // What the old one still sends is dropped, counted and logged.
  const std::string log = LogOf([&] { old.SendSample(Train(0), 0); });
  EXPECT_EQ(Dropped("stale_incarnation"), 1);
  EXPECT_THAT(log, HasSubstr("rollout=a reason=stale_incarnation purpose=train group=0 "
                             "detail=\"the learner has ended its stream\""));
  EXPECT_THAT(sink.samples, IsEmpty());
  // And it does not come back.
  old.Attach();
  ExpectClosed(old, absl::StatusCode::kFailedPrecondition, "STALE_INCARNATION",
               "another server attached as rollout 'a' after this one: give every server an id of "
               "its own (--id)");
  young.Obey();
  young.FinishAll();
  ExpectAllOnce(2);
  EXPECT_EQ(coordinator->Status().groups_reassigned, 2);
}

TEST_F(RolloutCoordinatorTest, TheSameIncarnationMayComeBackAfterABrokenStream) {
  FakeRollout& rollout = Busy();
  rollout.Attach();
  EXPECT_EQ(CloseReason(rollout), "open");
  Settle();
  rollout.FinishAll();
  ExpectAllOnce(2);
}

TEST_F(RolloutCoordinatorTest, TheFirstMessageMustBeHelloAndOnlyTheFirst) {
  auto outbox = std::make_shared<FakeOutbox>();
  v1::RolloutMessage message;
  message.mutable_credit()->set_total_groups(1);
  coordinator->OnMessage(coordinator->Attach(outbox), message);
  EXPECT_EQ(ReasonOf(*outbox->closed), "PROTOCOL_ERROR");

  FakeRollout& rollout = Add("a");
  message.mutable_hello()->set_rollout_id("a");
  rollout.Put(message);
  EXPECT_EQ(CloseReason(rollout), "PROTOCOL_ERROR");
}

TEST_F(RolloutCoordinatorTest, AHelloWithoutNamesIsRefused) {
  auto outbox = std::make_shared<FakeOutbox>();
  v1::RolloutMessage message;
  message.mutable_hello()->set_rollout_id("a");
  coordinator->OnMessage(coordinator->Attach(outbox), message);
  EXPECT_EQ(ReasonOf(*outbox->closed), "PROTOCOL_ERROR");
}

TEST_F(RolloutCoordinatorTest, AStreamWithoutHelloIsClosed) {
  auto outbox = std::make_shared<FakeOutbox>();
  coordinator->Attach(outbox);
  clock.Advance(absl::Seconds(11));
  coordinator->Tick();
  EXPECT_EQ(ReasonOf(*outbox->closed), "NO_HELLO");
}

// ---- weights

TEST_F(RolloutCoordinatorTest, PreparesInTheBackgroundAndCommitsWhenOlderWorkIsDone) {
  FakeRollout& rollout = Busy();
  Publish(1);
  Assign(2, 2, 1);
  rollout.Obey();
  EXPECT_EQ(Cases(rollout).back(), Message::kPrepareWeights);
  rollout.Finish(Train(0));
  rollout.Obey();
  EXPECT_EQ(rollout.version, 0u);
  rollout.Finish(Train(1));
  Settle();
  EXPECT_EQ(rollout.version, 1u);
  EXPECT_FALSE(rollout.committed_while_busy);
  rollout.FinishAll();
  ExpectAllOnce(3);
}

TEST_F(RolloutCoordinatorTest, TwoVersionsAtOnceGoInOrder) {
  FakeRollout& a = Add("a", 2);
  FakeRollout& b = Add("b", 2);
  BeginJob();
  Publish(0);
  Settle();
  Assign(0, 5, 0);
  Publish(1);
  Assign(6, 11, 1);
  Settle();
  while (!a.groups.empty() || !b.groups.empty()) {
    for (FakeRollout* rollout : {&a, &b}) {
      if (!rollout->groups.empty()) rollout->Finish(rollout->groups.begin()->first);
    }
    Settle();
  }
  ExpectAllOnce(12);
  EXPECT_FALSE(a.wrong_version || b.wrong_version);
  EXPECT_FALSE(a.committed_while_busy || b.committed_while_busy);
}

TEST_F(RolloutCoordinatorTest, ARolloutGoesBackForALostGroupOfAnOlderVersion) {
  FakeRollout& a = Add("a");
  FakeRollout& b = Add("b");
  BeginJob();
  Publish(0);
  Settle();
  Assign(0, 1, 0);
  Settle();
  Publish(1);
  a.FinishAll();
  Settle();
  Assign(2, 3, 1);
  Settle();
  EXPECT_EQ(a.version, 1u);
  ASSERT_FALSE(a.groups.empty());
  b.Close();
  rollouts.pop_back();
  Settle();
  a.FinishAll();
  Settle();
  EXPECT_EQ(a.version, 0u) << "the group of version 0 comes before the last ones of version 1";
  a.FinishAll();
  Settle();
  a.FinishAll();
  ExpectAllOnce(4);
}

TEST_F(RolloutCoordinatorTest, AWrongDigestIsPreparedAgainThenRefused) {
  FakeRollout& rollout = Add("a");
  BeginJob();
  Publish(0);
  for (int attempt = 1; attempt <= 3; ++attempt) {
    const Message* message = nullptr;
    while ((message = rollout.Next()) != nullptr && !message->has_prepare_weights()) {
      rollout.Obey(Message(*message));
    }
    ASSERT_NE(message, nullptr) << attempt;
    EXPECT_EQ(CloseReason(rollout), "open");
    v1::RolloutMessage ready;
    ready.mutable_weights_ready()->set_job_epoch(1);
    ready.mutable_weights_ready()->mutable_weights()->set_manifest_digest("bad");
    rollout.Put(ready);
  }
  ExpectClosed(rollout, absl::StatusCode::kFailedPrecondition, "ROLLOUT_CANNOT_LOAD",
               "failed 3 times; last: WEIGHTS_DIGEST_MISMATCH: staged version 0 with digest bad "
               "instead of version 0");
}

TEST_F(RolloutCoordinatorTest, ServingOtherWeightsTakesItsGroupsAway) {
  FakeRollout& rollout = Busy();
  v1::RolloutMessage serving;
  serving.mutable_serving()->set_job_epoch(1);
  serving.mutable_serving()->mutable_weights()->set_manifest_digest("bad");
  rollout.Put(serving);
  EXPECT_EQ(coordinator->Status().rollouts_serving, 0);
  EXPECT_EQ(coordinator->Status().groups_reassigned, 2);
  Settle();
  EXPECT_EQ(coordinator->Status().rollouts_serving, 1);
  rollout.FinishAll();
  ExpectAllOnce(2);
}

TEST_F(RolloutCoordinatorTest, TheJobSaysWhichPartsStayFp32) {
  for (const bool residual : {false, true}) {
    RolloutJob job = TinyJob();
    job.fp32 = {.residual = residual, .head = !residual};
    FakeRollout& rollout = Add(residual ? "a" : "b");
    coordinator->BeginJob(job, &sink);
    const v1::LearnerMessage& load = rollout.outbox->messages.back();
    ASSERT_TRUE(load.has_load_job());
    EXPECT_EQ(load.load_job().fp32_residual(), residual);
    EXPECT_EQ(load.load_job().fp32_head(), !residual);
    coordinator->EndJob();
  }
}

TEST_F(RolloutCoordinatorTest, AFailureToLoadIsTriedAgain) {
  FakeRollout& rollout = Add("a");
  BeginJob();
  const v1::RolloutMessage failure = Failure(v1::RolloutFailure::SUBJECT_LOAD_JOB, "OUT_OF_MEMORY");
  rollout.Put(failure);
  EXPECT_THAT(Cases(rollout), ElementsAre(Message::kWelcome, Message::kLoadJob, Message::kLoadJob));
  rollout.Put(failure);
  rollout.Put(failure);
  ExpectClosed(rollout, absl::StatusCode::kFailedPrecondition, "ROLLOUT_CANNOT_LOAD",
               "failed 3 times; last: OUT_OF_MEMORY");
}

TEST_F(RolloutCoordinatorTest, AFailedGroupIsNoFailureOfTheWeightsThatAreFetchedMeanwhile) {
  FakeRollout& rollout = Busy();
  Publish(1);
  ASSERT_EQ(Cases(rollout).back(), Message::kPrepareWeights);
  v1::RolloutMessage failure = Failure(v1::RolloutFailure::SUBJECT_GROUP, "NON_FINITE_LOGITS");
  failure.mutable_failure()->set_purpose(v1::PURPOSE_TRAIN);
  const std::string log = LogOf([&] {
    for (int i = 0; i < 10; ++i) rollout.Put(failure);
  });
  EXPECT_THAT(log, HasSubstr("reason=NON_FINITE_LOGITS"));
  EXPECT_EQ(CloseReason(rollout), "open");
  EXPECT_EQ(Cases(rollout).back(), Message::kPrepareWeights);
  EXPECT_THAT(coordinator->Status().waiting_for, Not(HasSubstr("failed with")));
  // The group itself comes back by its cancelled samples and is made again.
  Sample given_up;
  given_up.finish_reason = FinishReason::kCancelled;
  Sample second = given_up;
  second.index = 1;
  rollout.SendSamples({{Train(0), given_up}, {Train(0), second}});
  EXPECT_EQ(coordinator->Status().groups_reassigned, 1);
  Settle();
  rollout.FinishAll();
  Settle();
  ExpectAllOnce(2);
  EXPECT_EQ(rollout.version, 1u);
}

TEST_F(RolloutCoordinatorTest, AFailureOfWeightsCountsOnlyWhileTheyAreWanted) {
  FakeRollout& rollout = Busy();
  Publish(1);
  v1::RolloutMessage failure =
      Failure(v1::RolloutFailure::SUBJECT_WEIGHTS, "WEIGHTS_DIGEST_MISMATCH");
  ToProto(TinyWeights(0)->manifest().identity(), failure.mutable_failure()->mutable_weights());
  for (int i = 0; i < 10; ++i) rollout.Put(failure);
  EXPECT_EQ(CloseReason(rollout), "open");
  EXPECT_THAT(coordinator->Status().waiting_for, Not(HasSubstr("failed with")));
  ToProto(TinyWeights(1)->manifest().identity(), failure.mutable_failure()->mutable_weights());
  for (int i = 0; i < 3; ++i) rollout.Put(failure);
  ExpectClosed(rollout, absl::StatusCode::kFailedPrecondition, "ROLLOUT_CANNOT_LOAD",
               "failed 3 times; last: WEIGHTS_DIGEST_MISMATCH");
}

TEST_F(RolloutCoordinatorTest, AnEndlessLoadIsGivenUp) {
  FakeRollout& rollout = Add("a");
  BeginJob();
  for (int i = 0; i < 601; ++i) {
    rollout.SendHeartbeat();
    clock.Advance(absl::Seconds(1));
    coordinator->Tick();
  }
  EXPECT_EQ(CloseReason(rollout), "ROLLOUT_TOO_SLOW");
}

TEST_F(RolloutCoordinatorTest, HoldsWeightsUntilReleased) {
  BeginJob();
  Publish(0);
  Publish(1);
  const WeightIdentity zero = TinyWeights(0)->manifest().identity();
  EXPECT_NE(coordinator->FindWeights(1, zero), nullptr);
  EXPECT_EQ(coordinator->FindWeights(2, zero), nullptr);
  EXPECT_EQ(coordinator->FindWeights(1, {0, "other"}), nullptr);
  coordinator->ReleaseWeightsBelow(1);
  EXPECT_EQ(coordinator->FindWeights(1, zero), nullptr);
  EXPECT_NE(coordinator->FindJob(1), nullptr);
  coordinator->EndJob();
  EXPECT_EQ(coordinator->FindJob(1), nullptr);
}

// ---- credit

TEST_F(RolloutCoordinatorTest, NeverExceedsCredit) {
  FakeRollout& rollout = Add("a", 3);
  BeginJob();
  Publish(0);
  Settle();
  Assign(0, 9, 0);
  Settle();
  EXPECT_EQ(rollout.groups.size(), 3u);
  rollout.Finish(Train(0));
  Settle();
  EXPECT_EQ(rollout.groups.size(), 3u);
}

TEST_F(RolloutCoordinatorTest, RepeatedAndLostCreditDoesNoHarm) {
  FakeRollout& rollout = Add("a", 1);
  BeginJob();
  Publish(0);
  Settle();
  Assign(0, 9, 0);
  for (int i = 0; i < 5; ++i) rollout.SendCredit();
  Settle();
  EXPECT_EQ(rollout.assigned, 1);
  // The message for the first group is lost; the second one's makes up for it.
  v1::RolloutMessage credit;
  credit.mutable_credit()->set_job_epoch(1);
  credit.mutable_credit()->set_total_groups(3);
  rollout.Put(credit);
  credit.mutable_credit()->set_total_groups(2);  // late and lower
  rollout.Put(credit);
  Settle();
  EXPECT_EQ(rollout.assigned, 3);
  credit.mutable_credit()->set_job_epoch(7);
  credit.mutable_credit()->set_total_groups(100);
  rollout.Put(credit);
  Settle();
  EXPECT_EQ(rollout.assigned, 3);
}

// ---- intake

TEST_F(RolloutCoordinatorTest, DropsAndCountsWhatItCannotBelieve) {
  FakeRollout& rollout = Busy();
  const GroupAssignment group = rollout.groups.at(Train(0));
  // Sends one sample, which is to be dropped, counted by `reason` and logged with `detail`.
  const auto send = [&](const GroupKey& key, const std::function<void(Sample&)>& spoil,
                        const std::string& reason, const std::string& detail) {
    Sample sample = FakeRollout::GoodSample(group, 0);
    spoil(sample);
    const std::string log = LogOf([&] { rollout.SendSamples({{key, sample}}); });
    EXPECT_EQ(Dropped(reason), 1) << reason;
    EXPECT_THAT(log, HasSubstr(absl::StrCat("rollout=a reason=", reason, " purpose=train group=",
                                            key.ordinal, " detail=\"", detail, "\"")));
  };
  send(
      Train(77), [](Sample&) {}, "unknown_group", "this job never gave it out");
  send(
      Train(0), [](Sample& s) { s.index = 2; }, "index_out_of_range",
      "sample 2: index 2 of 2 samples");
  send(
      Train(0), [](Sample& s) { s.tokens[1] = 8; }, "token_out_of_range",
      "sample 0: token id 8, the vocabulary has 8");
  send(
      Train(0), [](Sample& s) { s.log_probs[1] = std::numeric_limits<float>::quiet_NaN(); },
      "bad_log_prob", "sample 0: log-prob nan");
  send(
      Train(0),
      [](Sample& s) {
        s.versions = {{1, 3}};
      },
      "wrong_version", "sample 0: generated by version 1, assigned was 0");
  send(
      Train(0), [](Sample& s) { s.log_probs.pop_back(); }, "malformed",
      "sample 0: 3 tokens with 2 log-probs");
  rollout.epoch = 9;
  send(
      Train(0), [](Sample&) {}, "stale_job", "message 7 of job epoch 9");
  rollout.epoch = 1;
  EXPECT_THAT(sink.samples, IsEmpty());
  EXPECT_EQ(metrics.samples.Value(), 7);
}

TEST_F(RolloutCoordinatorTest, AGroupWithARefusedSampleIsMadeAgain) {
  FakeRollout& rollout = Busy();
  FakeRollout& other = Add("b");
  Settle();
  const GroupAssignment group = rollout.groups.at(Train(0));
  Sample bad = FakeRollout::GoodSample(group, 1);
  bad.tokens[0] = 99;
  rollout.SendSamples({{Train(0), FakeRollout::GoodSample(group, 0)}, {Train(0), bad}});
  Settle();
  EXPECT_TRUE(other.groups.contains(Train(0)));
  other.FinishAll();
  rollout.Finish(Train(1));
  ExpectAllOnce(2);
  EXPECT_EQ(Dropped("duplicate"), 1);
}

TEST_F(RolloutCoordinatorTest, ARepeatedMessageIsDropped) {
  FakeRollout& rollout = Busy();
  const GroupAssignment group = rollout.groups.at(Train(0));
  v1::RolloutMessage message;
  message.mutable_samples()->set_job_epoch(1);
  message.mutable_samples()->set_sequence_number(1);
  ToProto({Train(0), FakeRollout::GoodSample(group, 0)}, message.mutable_samples()->add_samples());
  rollout.Put(message);
  rollout.Put(message);
  EXPECT_EQ(sink.samples.size(), 1u);
  EXPECT_EQ(Dropped("duplicate"), 1);
}

TEST_F(RolloutCoordinatorTest, ARolloutMayNotDeliverForAnother) {
  FakeRollout& rollout = Busy();
  FakeRollout& other = Add("b");
  Settle();
  other.SendSamples({{Train(0), FakeRollout::GoodSample(rollout.groups.at(Train(0)), 0)}});
  EXPECT_EQ(Dropped("not_assigned"), 1);
  EXPECT_THAT(sink.samples, IsEmpty());
}

// ---- ends

TEST_F(RolloutCoordinatorTest, EndJobStopsEverythingAndTheNextJobStartsClean) {
  FakeRollout& rollout = Busy();
  coordinator->EndJob();
  EXPECT_EQ(Cases(rollout).back(), Message::kUnloadJob);
  rollout.SendSample(Train(0), 0);
  EXPECT_EQ(Dropped("stale_job"), 1);
  EXPECT_THAT(sink.samples, IsEmpty());
  Settle();
  RolloutJob job = TinyJob();
  job.epoch = 2;
  coordinator->BeginJob(job, &sink);
  Publish(0);
  GroupAssignment group = TinyGroup(Train(0), 0);
  group.job_epoch = 2;
  coordinator->Assign({group});
  Settle();
  rollout.FinishAll();
  ExpectAllOnce(1);
}

TEST_F(RolloutCoordinatorTest, WhatComesForACompleteGroupIsLate) {
  FakeRollout& rollout = Busy();
  rollout.Finish(Train(0));
  rollout.SendSamples({{Train(0), FakeRollout::GoodSample(TinyGroup(Train(0), 0), 0)}});
  EXPECT_EQ(Dropped("late"), 1);
  rollout.FinishAll();
  ExpectAllOnce(2);
}

TEST_F(RolloutCoordinatorTest, OnlySoManyStreamsMayKeepItWaitingForHello) {
  CoordinatorOptions options;
  options.max_ungreeted = 2;
  NewCoordinator(options);
  Add("a");
  FakeOutbox silent[3];
  const auto attach = [&](FakeOutbox& outbox) {
    return coordinator->Attach(std::shared_ptr<FakeOutbox>(&outbox, [](FakeOutbox*) {}));
  };
  attach(silent[0]);
  const SessionId second = attach(silent[1]);
  EXPECT_FALSE(silent[1].closed);
  const SessionId third = attach(silent[2]);
  ASSERT_TRUE(silent[2].closed);
  EXPECT_EQ(silent[2].closed->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(*silent[2].closed), "TOO_MANY_STREAMS");
  coordinator->OnMessage(third, v1::RolloutMessage());
  coordinator->OnClosed(third);
  coordinator->OnClosed(second);
  EXPECT_EQ(CloseReason(Add("b")), "open") << "there is room again";
}

TEST_F(RolloutCoordinatorTest, DrainTellsEverybodyAndRefusesNewcomers) {
  FakeRollout& rollout = Busy();
  coordinator->Drain();
  EXPECT_EQ(Cases(rollout).back(), Message::kDrain);
  EXPECT_EQ(CloseReason(rollout), "LEARNER_STOPPING");
  EXPECT_EQ(CloseReason(Add("b")), "LEARNER_STOPPING");
}

TEST_F(RolloutCoordinatorTest, ARolloutThatDoesNotReadIsDisconnected) {
  FakeRollout& rollout = Add("a");
  FakeRollout& other = Add("b");
  BeginJob();
  Publish(0);
  Settle();
  rollout.outbox->bound = rollout.outbox->messages.size() + 3;
  Assign(0, 19, 0);
  EXPECT_EQ(CloseReason(rollout), "OUTBOX_FULL");
  Settle();
  other.FinishAll();
  ExpectAllOnce(20);
}

TEST_F(RolloutCoordinatorTest, HeartbeatsAreSentToEverybody) {
  FakeRollout& rollout = Add("a");
  Pass(absl::Seconds(5));
  int heartbeats = 0;
  for (const Message& message : rollout.outbox->messages) heartbeats += message.has_heartbeat();
  EXPECT_EQ(heartbeats, 2);
}

TEST_F(RolloutCoordinatorTest, SaysWhatItWaitsFor) {
  FakeRollout& rollout = Busy();
  Assign(5, 6, 4);
  Pass(absl::Seconds(3));
  const std::string waiting = coordinator->Status().waiting_for;
  EXPECT_THAT(waiting, HasSubstr("rollout 'a' is SERVING version 0, holds 2 groups"));
  EXPECT_THAT(waiting, HasSubstr("2 groups wait for a rollout that serves version 4"));
  rollout.FinishAll();
}

}  // namespace
}  // namespace halfstep
