// SPDX-License-Identifier: Apache-2.0
// Runs that are cut short by what is around them, and how they go on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <filesystem>
#include <functional>
#include <set>

#include "common/metrics/names.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A real engine behind rollouts that fail when a test says so.
class FaultyPool final : public RolloutPool {
 public:
  enum class Fault { kNone, kLost, kSilent };

  // What becomes of the groups that `applies` to.
  void Fail(Fault fault, std::function<bool(const GroupKey&)> applies) {
    fault_ = fault;
    applies_ = std::move(applies);
  }

  void BeginJob(const RolloutJob& job, SampleSink* sink) override {
    sink_ = sink;
    pool_.BeginJob(job, sink);
  }
  void EndJob() override { pool_.EndJob(); }
  void Publish(std::shared_ptr<const WeightSet> weights) override {
    pool_.Publish(std::move(weights));
  }
  void ReleaseWeightsBelow(uint64_t version) override { pool_.ReleaseWeightsBelow(version); }
  void Assign(std::vector<GroupAssignment> groups) override {
    std::vector<GroupAssignment> good;
    for (GroupAssignment& group : groups) {
      if (fault_ == Fault::kNone || !applies_(group.key)) {
        good.push_back(std::move(group));
      } else if (fault_ == Fault::kLost) {
        sink_->OnGroupLost(group, absl::AbortedError("six rollouts died of it"));
      }
    }
    pool_.Assign(std::move(good));
  }
  RolloutPoolStatus Status() const override { return pool_.Status(); }

 private:
  LocalRolloutPool pool_;
  SampleSink* sink_ = nullptr;
  Fault fault_ = Fault::kNone;
  std::function<bool(const GroupKey&)> applies_;
};

// Asks for a stop when it is asked for the `polls`-th time after `step` is done.
class StopWithinAStep final : public RunControl {
 public:
  StopWithinAStep(int64_t step, int polls) : step_(step), polls_left_(polls) {}
  RunRequest request() const override {
    absl::MutexLock lock(&mutex_);
    if (armed_ && polls_left_ > 0) --polls_left_;
    return armed_ && polls_left_ == 0 ? RunRequest::kStop : RunRequest::kNone;
  }
  void Emit(v1::TrainingJobEvent) override {}
  void SetProgress(int64_t step, uint64_t) override {
    absl::MutexLock lock(&mutex_);
    armed_ = armed_ || step == step_;
  }

 private:
  const int64_t step_;
  mutable absl::Mutex mutex_;
  mutable int polls_left_ ABSL_GUARDED_BY(mutex_);
  bool armed_ ABSL_GUARDED_BY(mutex_) = false;
};

class RunRecoveryTest : public TinyRunTest {};

TEST_F(RunRecoveryTest, ResumedRunIsTheSameBits) {
  const v1::RunSummary whole = RunWhole(TinyWorkplace::RlSpec("undivided", 8));
  const v1::RunSummary parts =
      RunInTwoParts(TinyWorkplace::RlSpec("parts", 8), 4, RunRequest::kPause);
  EXPECT_EQ(parts.weights_digest(), whole.weights_digest());
  EXPECT_EQ(parts.state_digest(), whole.state_digest());
  EXPECT_EQ(parts.tokens_trained(), whole.tokens_trained());
  EXPECT_EQ(parts.groups_reassigned(), 0);  // it paused between two steps
  EXPECT_EQ(ReadLines(root() + "/parts/metrics.jsonl").size(), 8u);
}

TEST_F(RunRecoveryTest, CrashLosesOnlyStepsSinceTheCheckpoint) {
  const v1::RunSummary whole = RunWhole(TinyWorkplace::RlSpec("uncrashed", 6));
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("crashed", 6);
  spec.mutable_checkpoint()->set_every_steps(2);
  LocalRolloutPool pool;
  {
    TinyLearner first(root(), &pool);
    // A cancelled run leaves its folder as a killed one does: without a checkpoint of step 5.
    first.control().RequestAfter(5, RunRequest::kCancel);
    ASSERT_EQ(first.Run("crashed", spec)->outcome, RunOutcome::kCancelled);
  }
  EXPECT_EQ(ReadLines(root() + "/crashed/metrics.jsonl").size(), 5u);
  TinyLearner second(root(), &pool);
  second.control().RequestAfter(4, RunRequest::kStop);
  ASSERT_EQ(second.Run("crashed", spec)->outcome, RunOutcome::kStopped);
  EXPECT_EQ(ReadLines(root() + "/crashed/metrics.jsonl").size(), 4u);
  TinyLearner third(root(), &pool);
  ASSERT_TRUE(third.Run("crashed", spec).ok());
  EXPECT_EQ(third.summary().state_digest(), whole.state_digest());
  EXPECT_EQ(ReadLines(root() + "/crashed/metrics.jsonl").size(), 6u);
  // The groups of step 5 were given out twice.
  EXPECT_EQ(whole.groups_reassigned(), 0);
  EXPECT_EQ(third.summary().groups_reassigned(), spec.batch().prompts());
}

TEST_F(RunRecoveryTest, CorruptCheckpointIsSetAsideForTheOneBefore) {
  const v1::RunSummary whole = RunWhole(TinyWorkplace::RlSpec("sound", 6));
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("spoilt", 6);
  spec.mutable_checkpoint()->set_every_steps(2);
  LocalRolloutPool pool;
  {
    TinyLearner first(root(), &pool);
    first.control().RequestAfter(5, RunRequest::kCancel);
    ASSERT_TRUE(first.Run("spoilt", spec).ok());
  }
  const std::string state = root() + "/spoilt/checkpoints/step_4/state.safetensors";
  std::string bytes = ReadText(state);
  ASSERT_FALSE(bytes.empty());
  bytes[bytes.size() / 2] ^= 1;
  WriteText(state, bytes);
  TinyLearner second(root(), &pool);
  ASSERT_TRUE(second.Run("spoilt", spec).ok());
  EXPECT_THAT(second.control().notices(), ElementsAre("CHECKPOINT_CORRUPT"));
  EXPECT_EQ(second.summary().state_digest(), whole.state_digest());
}

TEST_F(RunRecoveryTest, FailuresOfRolloutsPauseTheRunWithACheckpoint) {
  const v1::RunSummary whole = RunWhole(TinyWorkplace::RlSpec("whole", 4));
  const std::map<std::string, FaultyPool::Fault> faults{
      {"GROUP_LOST", FaultyPool::Fault::kLost}, {"BATCH_TIMEOUT", FaultyPool::Fault::kSilent}};
  for (const auto& [reason, fault] : faults) {
    const v1::TrainingJobSpec spec = TinyWorkplace::RlSpec(reason, 4);
    {
      FaultyPool pool;
      // The first group of step 3.
      pool.Fail(fault, [](const GroupKey& key) { return key.ordinal == 16; });
      RolloutClientOptions options;
      if (fault == FaultyPool::Fault::kSilent) options.batch_timeout = absl::Milliseconds(400);
      TinyLearner learner(root(), &pool, options);
      const auto result = learner.Run(reason, spec);
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_EQ(result->outcome, RunOutcome::kPaused);
      EXPECT_EQ(result->reason, reason);
      EXPECT_THAT(result->message, HasSubstr("resume the job"));
      EXPECT_THAT(learner.summary().checkpoint(), HasSubstr("/checkpoints/step_2"));
    }
    EXPECT_EQ(RunWhole(spec).state_digest(), whole.state_digest());
    EXPECT_EQ(ReadLines(root() + "/" + reason + "/metrics.jsonl").size(), 4u);
  }
}

TEST_F(RunRecoveryTest, AFullDiskAtTheEndPausesTheRunUntilThereIsRoom) {
  const v1::RunSummary whole = RunWhole(TinyWorkplace::RlSpec("roomy", 2));
  const v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("small/run", 2);
  const std::string small = root() + "/small";
  std::filesystem::create_directory(small);
  // Room for what is logged, not for weights.
  if (mount("none", small.c_str(), "tmpfs", 0, "size=48k") != 0) {
    GTEST_SKIP() << "mounting a small file system needs root";
  }
  {
    LocalRolloutPool pool;
    TinyLearner learner(root(), &pool);
    const auto result = learner.Run("small", spec);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->outcome, RunOutcome::kPaused);
    EXPECT_EQ(result->reason, "DISK_FULL");
    EXPECT_THAT(result->message, HasSubstr("make room and resume the job"));
    EXPECT_THAT(learner.control().notices(), Contains("CHECKPOINT_FAILED"));
  }
  EXPECT_EQ(mount("none", small.c_str(), "tmpfs", MS_REMOUNT, "size=16m"), 0);
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  const auto result = learner.Run("small", spec);
  umount(small.c_str());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->outcome, RunOutcome::kSucceeded);
  EXPECT_EQ(learner.summary().state_digest(), whole.state_digest());
}

TEST_F(RunRecoveryTest, WithoutASoundCheckpointNothingIsRunAndNothingIsLost) {
  const v1::RunSummary whole = RunWhole(TinyWorkplace::RlSpec("never_stopped", 4));
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("rotten", 4);
  spec.mutable_checkpoint()->set_every_steps(1);
  LocalRolloutPool pool;
  {
    TinyLearner learner(root(), &pool);
    learner.control().RequestAfter(3, RunRequest::kStop);
    ASSERT_TRUE(learner.Run("rotten", spec).ok());
  }
  const std::string metrics = ReadText(root() + "/rotten/metrics.jsonl");
  std::string sound;
  for (const char* step : {"2", "3"}) {
    const std::string state =
        absl::StrCat(root(), "/rotten/checkpoints/step_", step, "/state.safetensors");
    sound = ReadText(state);
    WriteText(state, "rot");
  }
  for (int i = 0; i < 2; ++i) {
    TinyLearner learner(root(), &pool);
    const auto result = learner.Run("rotten", spec);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->outcome, RunOutcome::kPaused);
    EXPECT_EQ(result->reason, "NO_SOUND_CHECKPOINT");
    EXPECT_THAT(result->message, HasSubstr("step_3"));
    EXPECT_EQ(ReadText(root() + "/rotten/metrics.jsonl"), metrics);
  }
  WriteText(root() + "/rotten/checkpoints/step_3/state.safetensors", sound);
  EXPECT_EQ(RunWhole(spec).state_digest(), whole.state_digest());
}

TEST_F(RunRecoveryTest, AStopWithinAStepLeavesItToTheNextAttempt) {
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("steady", 4);
  spec.mutable_batch()->set_micro_batch_tokens(1);  // 16 micro-batches in an update
  spec.mutable_batch()->set_updates(2);
  const v1::RunSummary whole = RunWhole(spec);
  // The first poll comes between two steps; the next 16 in the first update of step 3.
  std::set<size_t> steps_done;
  for (const int polls : {2, 10, 18, 25}) {
    spec.set_output_dir(absl::StrCat("stopped_", polls));
    {
      LocalRolloutPool pool;
      StopWithinAStep control(2, polls);
      TinyLearner learner(root(), &pool);
      v1::RunSummary summary;
      const auto result = learner.runner().Run(spec.output_dir(), 1, spec, &control, &summary);
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_EQ(result->outcome, RunOutcome::kStopped);
    }
    const std::string metrics = root() + "/" + spec.output_dir() + "/metrics.jsonl";
    steps_done.insert(ReadLines(metrics).size());
    EXPECT_EQ(RunWhole(spec).state_digest(), whole.state_digest()) << polls;
    EXPECT_EQ(ReadLines(metrics).size(), 4u);
  }
  EXPECT_THAT(steps_done, ElementsAre(2u, 3u));
}

TEST_F(RunRecoveryTest, AnInterruptedEvaluationIsMadeByTheNextAttempt) {
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("evaluated", 4);
  spec.mutable_data()->set_eval("eval.jsonl");
  spec.mutable_evaluation()->set_every_steps(2);
  const v1::RunSummary whole = RunWhole(spec);
  // Step, accuracy and greedy of each evaluation; other lines as their step.
  const auto evaluations = [](const v1::TrainingJobSpec& of) {
    std::vector<std::string> result;
    for (const auto& line : ReadLines(root() + "/" + of.output_dir() + "/metrics.jsonl")) {
      result.push_back(line.contains("eval_accuracy")
                           ? absl::StrCat(line["step"].dump(), ": ", line["eval_accuracy"].dump(),
                                          ", ", line["eval_greedy"].dump())
                           : line["step"].dump());
    }
    return result;
  };
  EXPECT_EQ(evaluations(spec).size(), 7u);
  for (const int64_t step : {0, 2, 4}) {
    v1::TrainingJobSpec parts = spec;
    parts.set_output_dir(absl::StrCat("evaluated_", step));
    {
      FaultyPool pool;
      // Every evaluation is 2 groups for each of the 4 prompts.
      pool.Fail(FaultyPool::Fault::kSilent, [step](const GroupKey& key) {
        return key.purpose == Purpose::kEval && static_cast<int64_t>(key.ordinal) / 8 == step;
      });
      TinyLearner learner(root(), &pool);
      learner.control().RequestAfter(step, RunRequest::kStop);
      const auto result = learner.Run(parts.output_dir(), parts);
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_EQ(result->outcome, RunOutcome::kStopped);
    }
    const v1::RunSummary summary = RunWhole(parts);
    EXPECT_EQ(evaluations(parts), evaluations(spec));
    EXPECT_EQ(summary.state_digest(), whole.state_digest());
    EXPECT_EQ(summary.base_accuracy(), whole.base_accuracy());
    EXPECT_EQ(summary.final_greedy(), whole.final_greedy());
  }
}

// What arrived is trained on, dropped or buffered, at every step and at the end.
class SampleLedger final : public RunControl {
 public:
  explicit SampleLedger(LearnerMetrics& metrics) : metrics_(metrics) {}
  RunRequest request() const override { return request_; }
  void Emit(v1::TrainingJobEvent) override {}
  void SetProgress(int64_t step, uint64_t) override {
    Check();
    if (step == stop_after_) request_ = RunRequest::kPause;
  }

  void Check() {
    EXPECT_EQ(metrics_.samples.Value(),
              metrics_.samples_trained.Value() + Dropped() + metrics_.samples_buffered.Value());
  }
  double Dropped() {
    double dropped = 0;
    for (const char* reason : metric::kDropReasons) {
      dropped += metrics_.samples_dropped[reason].Value();
    }
    return dropped;
  }
  void StopAfter(int64_t step) {
    stop_after_ = step;
    request_ = RunRequest::kNone;
  }

 private:
  LearnerMetrics& metrics_;
  int64_t stop_after_ = -1;
  RunRequest request_ = RunRequest::kNone;
};

TEST_F(RunRecoveryTest, EverySampleThatArrivesIsAccountedFor) {
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("counted", 6);
  spec.mutable_batch()->set_lag(2);
  LocalRolloutPool pool;
  v1::RunSummary summary;
  {
    TinyLearner learner(root(), &pool);
    LearnerMetrics& metrics = learner.metrics();
    SampleLedger control(metrics);
    for (const int64_t step : {2, 3}) {  // the second time in a process that knows the job
      control.StopAfter(step);
      ASSERT_TRUE(learner.runner().Run("counted", 1, spec, &control, &summary).ok());
      control.Check();
      EXPECT_EQ(metrics.samples_trained.Value(), step * 32);
      EXPECT_EQ(metrics.samples_buffered.Value(), 0);
    }
  }
  TinyLearner learner(root(), &pool);
  LearnerMetrics& metrics = learner.metrics();
  SampleLedger control(metrics);
  ASSERT_TRUE(learner.runner().Run("counted", 2, spec, &control, &summary).ok());
  control.Check();
  EXPECT_EQ(metrics.samples.Value(), 6 * 32);
  EXPECT_EQ(metrics.samples_trained.Value(), 6 * 32);
  EXPECT_EQ(control.Dropped(), 0);
}

}  // namespace
}  // namespace halfstep
