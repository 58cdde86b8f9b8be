// SPDX-License-Identifier: Apache-2.0
// Whole runs over two rollouts of which one is at fault: the alarm names it and its fault.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "learner_server/training/mismatch_diagnosis.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Deals groups out to two engines in turn.
class TwoRollouts final : public RolloutPool {
 public:
  TwoRollouts() {
    sound.SetRolloutId("sound");
    faulty.SetRolloutId("faulty");
  }

  LocalRolloutPool sound;
  LocalRolloutPool faulty;

  void BeginJob(const RolloutJob& job, SampleSink* sink) override {
    for (LocalRolloutPool* pool : {&sound, &faulty}) pool->BeginJob(job, sink);
  }
  void EndJob() override {
    for (LocalRolloutPool* pool : {&sound, &faulty}) pool->EndJob();
  }
  void Publish(std::shared_ptr<const WeightSet> weights) override {
    for (LocalRolloutPool* pool : {&sound, &faulty}) pool->Publish(weights);
  }
  void ReleaseWeightsBelow(uint64_t version) override {
    for (LocalRolloutPool* pool : {&sound, &faulty}) pool->ReleaseWeightsBelow(version);
  }
  void Assign(std::vector<GroupAssignment> groups) override {
    std::vector<GroupAssignment> parts[2];
    for (GroupAssignment& group : groups) parts[group.key.ordinal % 2].push_back(std::move(group));
    sound.Assign(std::move(parts[0]));
    faulty.Assign(std::move(parts[1]));
  }
  RolloutPoolStatus Status() const override { return sound.Status(); }
};

class MismatchFaultsTest : public testing::Test {
 protected:
  MismatchFaultsTest() {
    TinyLearner learner(root(), nullptr);
    EXPECT_TRUE(learner.Run("sft", TinyWorkplace::SupervisedSpec(40)).ok());
  }

  const std::string& root() const { return workplace_.root().path(); }

  // What the alarm says of a run of a few steps; empty when it says nothing.
  std::string Alarm(const v1::TrainingJobSpec& spec) {
    TinyLearner learner(root(), &pool_);
    const auto result = learner.Run(spec.output_dir(), spec);
    EXPECT_TRUE(result.ok()) << result.status();
    std::string said;
    for (const v1::TrainingJobEvent& event : learner.control().events()) {
      if (event.notice().reason() == "MISMATCH_JUMP") said += event.notice().message();
    }
    return said;
  }

  TinyWorkplace workplace_;
  TwoRollouts pool_;
};

TEST_F(MismatchFaultsTest, SoundRolloutsRaiseNothing) {
  EXPECT_EQ(Alarm(TinyWorkplace::RlSpec("sound", 4)), "");
}

TEST_F(MismatchFaultsTest, StaleWeightsAreNamedWithTheirVersion) {
  pool_.faulty.ServeStaleWeights();
  const std::string alarm = Alarm(TinyWorkplace::RlSpec("stale", 4));
  // Version 0 is all there is for the first step; at the second the fault shows.
  EXPECT_THAT(alarm, HasSubstr("step 2: "));
  EXPECT_THAT(alarm, HasSubstr("rollout faulty: "));
  EXPECT_THAT(alarm, HasSubstr("those of weights version 0 (stale_weights)"));
  EXPECT_THAT(alarm, Not(HasSubstr("rollout sound")));
}

TEST_F(MismatchFaultsTest, StaleWeightsAreNamedInTheFastProfileToo) {
  pool_.faulty.ServeStaleWeights();
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("stale_fast", 6);
  spec.set_profile(v1::PROFILE_FAST);
  spec.mutable_optimizer()->set_learning_rate(0.03);
  const std::string alarm = Alarm(spec);
  EXPECT_THAT(alarm, HasSubstr("rollout faulty: "));
  EXPECT_THAT(alarm, HasSubstr("(stale_weights)"));
}

TEST_F(MismatchFaultsTest, AnotherPrecisionIsNamed) {
  pool_.faulty.ComputeIn(DType::kBFloat16);
  const std::string alarm = Alarm(TinyWorkplace::RlSpec("precision", 3));
  EXPECT_THAT(alarm, HasSubstr("rollout faulty: "));
  EXPECT_THAT(alarm, HasSubstr("those of bf16 (other_precision)"));
  EXPECT_THAT(alarm, Not(HasSubstr("rollout sound")));
}

TEST_F(MismatchFaultsTest, LogProbsInAnotherOrderAreNamed) {
  pool_.faulty.RotateLogProbs();
  const std::string alarm = Alarm(TinyWorkplace::RlSpec("rotated", 3));
  EXPECT_THAT(alarm, HasSubstr("rollout faulty: "));
  EXPECT_THAT(alarm, HasSubstr("in another order (permuted_log_probs)"));
}

TEST_F(MismatchFaultsTest, WhatNothingExplainsIsSaidToBeUnknown) {
  pool_.faulty.FlipABitOfTheWeights();
  const std::string alarm = Alarm(TinyWorkplace::RlSpec("flipped", 3));
  EXPECT_THAT(alarm, HasSubstr("rollout faulty: "));
  EXPECT_THAT(alarm, HasSubstr("(unknown)"));
}

}  // namespace
}  // namespace halfstep
