// SPDX-License-Identifier: Apache-2.0
// Whole runs: supervised, and reinforcement learning against a real generation engine.
#include "learner_server/training/training_job_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "common/base/error_reason.h"
#include "learner_server/training/run_folder.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class TrainingJobRunnerTest : public TinyRunTest {};

TEST_F(TrainingJobRunnerTest, SupervisedLossFalls) {
  const auto lines = ReadLines(root() + "/sft/metrics.jsonl");
  ASSERT_EQ(lines.size(), 60u);
  EXPECT_EQ(lines[0]["step"], 1);
  EXPECT_GT(lines[0]["loss"], 4.0);
  // What is left is the choice of a letter: log(4) / 2 per token.
  EXPECT_LT(lines[59]["loss"], 0.8);
  EXPECT_EQ(lines[59]["policy_version"], 60);
  EXPECT_FALSE(lines[59].contains("reward_mean"));
  for (const char* file : {"config.json", "tokenizer.json", "model.safetensors"}) {
    EXPECT_TRUE(std::filesystem::exists(root() + "/sft/model/" + file)) << file;
  }
  EXPECT_EQ(sft_summary().weights_digest().size(), 32u);
  EXPECT_EQ(sft_summary().output_dir(), root() + "/sft");
  EXPECT_THAT(sft_summary().checkpoint(), HasSubstr("/sft/checkpoints/step_60"));
}

TEST_F(TrainingJobRunnerTest, SupervisedRunsAreTheSameBits) {
  v1::TrainingJobSpec spec = TinyWorkplace::SupervisedSpec(60);
  spec.set_output_dir("sft_again");
  const v1::RunSummary again = RunWhole(spec);
  EXPECT_EQ(again.weights_digest(), sft_summary().weights_digest());
  EXPECT_EQ(again.state_digest(), sft_summary().state_digest());
  spec.set_output_dir("sft_parts");
  const v1::RunSummary parts = RunInTwoParts(spec, 20, RunRequest::kStop);
  EXPECT_EQ(parts.state_digest(), sft_summary().state_digest());
}

TEST_F(TrainingJobRunnerTest, LearnsWithoutAnyMismatch) {
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("learns", 30);
  spec.mutable_data()->set_eval("eval.jsonl");
  spec.mutable_evaluation()->set_every_steps(10);
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  const auto result = learner.Run("learns", spec);
  ASSERT_TRUE(result.ok()) << result.status();
  const v1::RunSummary& summary = learner.summary();
  EXPECT_GT(summary.tokens_trained(), 30 * 32);
  EXPECT_EQ(summary.tokens_compared(), summary.tokens_trained());
  EXPECT_EQ(summary.tokens_generated(), summary.tokens_trained());
  EXPECT_EQ(summary.max_abs_logprob_diff(), 0);
  EXPECT_LT(summary.base_accuracy(), 0.6);
  EXPECT_GT(summary.final_accuracy(), 0.9);
  EXPECT_EQ(summary.final_greedy(), 1);
  // One engine on both sides: the very same policy.
  EXPECT_EQ(summary.final_accuracy_learner(), summary.final_accuracy());
  EXPECT_EQ(summary.deployment_gap(), 0);
  EXPECT_EQ(summary.samples_by_rollout().at("local"), 30 * 32);
  EXPECT_GT(summary.train_seconds(), 0);

  std::vector<int64_t> evaluated, stepped;
  for (const v1::TrainingJobEvent& event : learner.control().events()) {
    if (event.has_evaluation_finished()) evaluated.push_back(event.evaluation_finished().step());
    if (event.has_step_finished()) stepped.push_back(event.step_finished().step());
  }
  EXPECT_THAT(evaluated, ElementsAre(0, 10, 20, 30));
  EXPECT_EQ(stepped.size(), 30u);

  const auto lines = ReadLines(root() + "/learns/metrics.jsonl");
  ASSERT_EQ(lines.size(), 34u);
  EXPECT_EQ(lines[0]["step"], 0);
  EXPECT_DOUBLE_EQ(lines[0]["eval_accuracy"], summary.base_accuracy());
  EXPECT_EQ(lines[10]["step"], 10);
  EXPECT_FALSE(lines[10].contains("eval_greedy"));
  EXPECT_EQ(lines[11]["step"], 10);
  EXPECT_TRUE(lines[11].contains("eval_greedy"));
  EXPECT_DOUBLE_EQ(lines[33]["eval_accuracy"], summary.final_accuracy());
  EXPECT_EQ(lines[5]["mismatch_bit_equal_share"], 1);
  EXPECT_EQ(lines[5]["clip_fraction"], 0);
  for (const char* name : {"reward_mean", "loss_scale", "grad_norm", "entropy", "time_wait"}) {
    EXPECT_TRUE(lines[5].contains(name)) << name;
  }
  EXPECT_THAT(learner.Scrape(), HasSubstr("halfstep_learner_step 30"));
}

// Where digests are looked at, such a rollout is refused: tests/integration/flipped_bit_test.cc.
TEST_F(TrainingJobRunnerTest, OneFlippedBitInTheWeightsOfARolloutShowsAsMismatch) {
  LocalRolloutPool pool;
  pool.FlipABitOfTheWeights();
  TinyLearner learner(root(), &pool);
  ASSERT_TRUE(learner.Run("flipped", TinyWorkplace::RlSpec("flipped", 2)).ok());
  EXPECT_GT(learner.summary().max_abs_logprob_diff(), 0);
  EXPECT_EQ(learner.summary().tokens_compared(), learner.summary().tokens_trained());
  for (const auto& line : ReadLines(root() + "/flipped/metrics.jsonl")) {
    EXPECT_GT(line["mismatch_abs_max"], 0);
    EXPECT_LT(line["mismatch_bit_equal_share"], 1);
  }
  EXPECT_THAT(learner.Scrape(), Not(HasSubstr("halfstep_learner_mismatch_logprob_abs_max 0\n")));
}

TEST_F(TrainingJobRunnerTest, MetricsTellOneRunFromTheNext) {
  LocalRolloutPool pool;
  pool.FlipABitOfTheWeights();
  TinyLearner learner(root(), &pool);
  v1::TrainingJobSpec lagging = TinyWorkplace::RlSpec("lagging", 4);
  lagging.mutable_batch()->set_lag(1);
  ASSERT_TRUE(learner.Run("lagging", lagging).ok());
  const LearnerMetrics& metrics = learner.metrics();
  EXPECT_EQ(metrics.policy_version.Value(), 4);
  EXPECT_EQ(metrics.scheduled_lag.Value(), 1);
  EXPECT_EQ(metrics.mismatch_bound.Value(), 0);
  // Only the first batch was compared, and it is not forgotten.
  EXPECT_EQ(metrics.mismatch_max.Value(), learner.summary().max_abs_logprob_diff());
  EXPECT_GT(metrics.mismatch_max.Value(), 0);

  v1::TrainingJobSpec supervised = TinyWorkplace::SupervisedSpec(2);
  supervised.set_output_dir("sft_after");
  ASSERT_TRUE(learner.Run("sft_after", supervised).ok());
  EXPECT_EQ(metrics.step.Value(), 2);
  EXPECT_EQ(metrics.policy_version.Value(), 0) << "nothing was published";
  EXPECT_EQ(metrics.scheduled_lag.Value(), 0);
  EXPECT_TRUE(std::isnan(metrics.mismatch_max.Value()));
}

TEST_F(TrainingJobRunnerTest, ResumedRunIsTheSameBits) {
  const v1::RunSummary whole = RunWhole(TinyWorkplace::RlSpec("whole", 8));
  const v1::RunSummary parts =
      RunInTwoParts(TinyWorkplace::RlSpec("parts", 8), 4, RunRequest::kPause);
  EXPECT_EQ(parts.weights_digest(), whole.weights_digest());
  EXPECT_EQ(parts.state_digest(), whole.state_digest());
  EXPECT_EQ(parts.tokens_trained(), whole.tokens_trained());
  EXPECT_EQ(parts.groups_reassigned(), 0);  // it paused between two steps
  EXPECT_EQ(ReadLines(root() + "/parts/metrics.jsonl").size(), 8u);
}

TEST_F(TrainingJobRunnerTest, SavedSamplesTellWhereEveryResponseCameFrom) {
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("saved", 4);
  spec.set_save_samples(true);
  RunWhole(spec);
  const auto lines = ReadLines(root() + "/saved/samples.jsonl");
  const auto rows = ReadLines(root() + "/train.jsonl");
  ASSERT_EQ(lines.size(), 4u * 8 * 4);
  for (size_t i = 0; i < lines.size(); ++i) {
    const nlohmann::json& line = lines[i];
    EXPECT_EQ(line["step"], 1 + i / 32);
    EXPECT_EQ(line["group"], i / 4);
    EXPECT_EQ(line["index"], i % 4);
    EXPECT_EQ(line["rollout"], "local");
    ASSERT_EQ(line["versions"].size(), 1u);
    EXPECT_EQ(line["versions"][0]["version"], i / 32);
    EXPECT_EQ(line["versions"][0]["tokens"], line["tokens"].size());
    EXPECT_EQ(line["log_probs"].size(), line["tokens"].size());
    EXPECT_EQ(line["outcome"], "score");
    const std::string end = line["finish_reason"] == "stop" ? "<|endoftext|>" : "";
    EXPECT_EQ(line["text"] == "a" + end, line["reward"] == 1) << line;
    // Rows of an epoch are all different, samples of a group are of one row.
    EXPECT_EQ(line["row"], lines[i / 4 * 4]["row"]);
    ASSERT_LE(line["row"], rows.size());
  }
  std::set<int64_t> seen;
  for (const nlohmann::json& line : lines) seen.insert(line["row"].get<int64_t>());
  EXPECT_EQ(seen.size(), 32u);
  // Advantages of a group add up to nothing.
  for (size_t i = 0; i < lines.size(); i += 4) {
    double sum = 0;
    for (size_t k = i; k < i + 4; ++k) sum += lines[k]["advantage"].get<double>();
    EXPECT_NEAR(sum, 0, 1e-12);
  }
  spec.set_output_dir("saved_parts");
  spec.mutable_checkpoint()->set_every_steps(2);
  RunInTwoParts(spec, 3, RunRequest::kCancel);  // one step is run again
  EXPECT_EQ(ReadText(root() + "/saved_parts/samples.jsonl"),
            ReadText(root() + "/saved/samples.jsonl"));
  EXPECT_FALSE(std::filesystem::exists(root() + "/sft/samples.jsonl"));
}

TEST_F(TrainingJobRunnerTest, EveryStepSaysWhatItLeft) {
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("digests_a", 4);
  RunWhole(spec);
  spec.set_output_dir("digests_b");
  RunWhole(spec);
  spec.set_output_dir("digests_c");
  spec.set_seed(spec.seed() + 1);
  RunWhole(spec);
  const auto digests = [&](const std::string& run) {
    std::vector<std::string> values;
    for (const auto& line : ReadLines(root() + "/" + run + "/metrics.jsonl")) {
      if (line.contains("master_digest")) values.push_back(line["master_digest"]);
    }
    return values;
  };
  const std::vector<std::string> first = digests("digests_a");
  EXPECT_EQ(std::set(first.begin(), first.end()).size(), 4u) << "every step changes the weights";
  EXPECT_EQ(digests("digests_b"), first);
  EXPECT_NE(digests("digests_c")[0], first[0]);
}

TEST_F(TrainingJobRunnerTest, CrashLosesOnlyStepsSinceTheCheckpoint) {
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

TEST_F(TrainingJobRunnerTest, CorruptCheckpointIsSetAsideForTheOneBefore) {
  const v1::RunSummary whole = RunWhole(TinyWorkplace::RlSpec("sound", 6));
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("rotten", 6);
  spec.mutable_checkpoint()->set_every_steps(2);
  LocalRolloutPool pool;
  {
    TinyLearner first(root(), &pool);
    first.control().RequestAfter(5, RunRequest::kCancel);
    ASSERT_TRUE(first.Run("rotten", spec).ok());
  }
  const std::string state = root() + "/rotten/checkpoints/step_4/state.safetensors";
  std::string bytes = ReadText(state);
  ASSERT_FALSE(bytes.empty());
  bytes[bytes.size() / 2] ^= 1;
  WriteText(state, bytes);
  TinyLearner second(root(), &pool);
  ASSERT_TRUE(second.Run("rotten", spec).ok());
  EXPECT_THAT(second.control().notices(), ElementsAre("CHECKPOINT_CORRUPT"));
  EXPECT_EQ(second.summary().state_digest(), whole.state_digest());
}

TEST_F(TrainingJobRunnerTest, GenerationMayRunAheadAndStaysReproducible) {
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("lag_a", 8);
  spec.mutable_batch()->set_lag(1);
  const v1::RunSummary one = RunWhole(spec);
  spec.set_output_dir("lag_b");
  const v1::RunSummary two = RunWhole(spec);
  EXPECT_EQ(one.state_digest(), two.state_digest());
  // Only the first batch is trained on by the weights that generated it.
  EXPECT_GT(one.tokens_compared(), 0);
  EXPECT_LT(one.tokens_compared(), one.tokens_trained() / 4);
  EXPECT_EQ(one.max_abs_logprob_diff(), 0);
  spec.set_output_dir("lag_parts");
  EXPECT_EQ(RunInTwoParts(spec, 3, RunRequest::kStop).state_digest(), one.state_digest());
  spec.set_output_dir("lag_2");
  spec.mutable_batch()->set_lag(2);
  EXPECT_NE(RunInTwoParts(spec, 3, RunRequest::kPause).state_digest(), one.state_digest());
}

TEST_F(TrainingJobRunnerTest, SeveralUpdatesCompareTheFirst) {
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("updates", 3);
  spec.mutable_batch()->set_updates(4);
  const v1::RunSummary summary = RunWhole(spec);
  EXPECT_EQ(summary.max_abs_logprob_diff(), 0);
  EXPECT_GT(summary.tokens_compared(), summary.tokens_trained() / 8);
  EXPECT_LT(summary.tokens_compared(), summary.tokens_trained() / 2);
  const auto lines = ReadLines(root() + "/updates/metrics.jsonl");
  EXPECT_EQ(lines[0]["updates_applied"], 4);
  EXPECT_EQ(lines[2]["policy_version"], 3);
}

TEST_F(TrainingJobRunnerTest, SkippedStepsAreConsumedAndPublishNothing) {
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("skips", 12);
  spec.mutable_loss_scale()->set_initial(0x1p40);
  spec.mutable_loss_scale()->add_range(1);
  spec.mutable_loss_scale()->add_range(0);
  const v1::RunSummary summary = RunWhole(spec);
  EXPECT_GT(summary.skipped_steps(), 0);
  EXPECT_LT(summary.final_loss_scale(), 0x1p40);
  const auto lines = ReadLines(root() + "/skips/metrics.jsonl");
  EXPECT_EQ(lines[0]["updates_applied"], 0);
  EXPECT_EQ(lines[0]["policy_version"], 0);
  EXPECT_TRUE(lines[0].contains("non_finite_parameter"));
  EXPECT_EQ(lines[0]["overflow"], "logits");
  for (const auto& line : lines) EXPECT_EQ(line.contains("overflow"), line["updates_applied"] == 0);
  EXPECT_EQ(lines[11]["policy_version"], 12 - summary.skipped_steps());
  // Batches after a skipped one still compare: the version did not move.
  EXPECT_EQ(summary.tokens_compared(), summary.tokens_trained());
  spec.set_output_dir("skips_parts");
  EXPECT_EQ(RunInTwoParts(spec, 2, RunRequest::kStop).state_digest(), summary.state_digest());
}

TEST_F(TrainingJobRunnerTest, LossScaleFloorEndsTheJobWithItsReason) {
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("floor", 12);
  spec.mutable_loss_scale()->set_initial(0x1p60);
  spec.mutable_loss_scale()->add_range(0x1p58);
  spec.mutable_loss_scale()->add_range(0);
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  const auto result = learner.Run("floor", spec);
  EXPECT_EQ(ReasonOf(result.status()), "LOSS_SCALE_FLOOR");
  EXPECT_GE(learner.summary().skipped_steps(), 2);
  EXPECT_EQ(learner.summary().final_loss_scale(), 0x1p58);
}

TEST_F(TrainingJobRunnerTest, ScaleThatNeverWorksEndsTheJobWithItsReason) {
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("diverged", 30);
  spec.mutable_loss_scale()->set_preset(v1::LOSS_SCALE_PRESET_STATIC);
  spec.mutable_loss_scale()->set_initial(0x1p100);
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  EXPECT_EQ(ReasonOf(learner.Run("diverged", spec).status()), "DIVERGED");
  EXPECT_EQ(learner.summary().skipped_steps(), 20);
  EXPECT_EQ(learner.summary().final_loss_scale(), 0x1p100);
  EXPECT_EQ(ReadLines(root() + "/diverged/metrics.jsonl").back()["policy_version"], 0);
  EXPECT_THAT(learner.Scrape(), HasSubstr("halfstep_learner_skipped_steps_total 19"));
}

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

TEST_F(TrainingJobRunnerTest, AnAlarmWarnsOnceAndTheJobGoesOn) {
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  EXPECT_THAT(learner.Scrape(), HasSubstr(kConstantRewardQuiet));
  const auto result = learner.Run("warned", HopelessSpec(root(), "warned", v1::HEALTH_ACTION_WARN));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->outcome, RunOutcome::kSucceeded);
  EXPECT_THAT(learner.control().notices(), ElementsAre("CONSTANT_REWARD"));
  EXPECT_THAT(learner.Scrape(), HasSubstr(kConstantRewardRaised));
}

TEST_F(TrainingJobRunnerTest, AnAlarmPausesAfterACheckpointAndIsNotRaisedAgain) {
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

TEST_F(TrainingJobRunnerTest, AnAlarmFailsTheJobWithItsReason) {
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  const auto result =
      learner.Run("unhealthy", HopelessSpec(root(), "unhealthy", v1::HEALTH_ACTION_FAIL));
  EXPECT_EQ(ReasonOf(result.status()), "CONSTANT_REWARD");
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("health.constant_reward is fail"));
  EXPECT_EQ(learner.control().step(), 10);
}

TEST_F(TrainingJobRunnerTest, RefusesAFolderWithOtherThings) {
  std::filesystem::create_directories(root() + "/full");
  WriteText(root() + "/full/notes.txt", "mine");
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  const v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("full", 2);
  for (const absl::Status& status :
       {learner.Run("full", spec).status(), learner.runner().Check(spec)}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ReasonOf(status), "OUTPUT_DIR_NOT_EMPTY");
    EXPECT_THAT(std::string(status.message()), HasSubstr("notes.txt"));
  }
  EXPECT_EQ(ReadText(root() + "/full/notes.txt"), "mine");
  // Nor does it touch the run of another job.
  const absl::Status other = learner.Run("someone", TinyWorkplace::RlSpec("sft", 2)).status();
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(other), "OUTPUT_DIR_NOT_EMPTY");
  EXPECT_THAT(std::string(other.message()),
              HasSubstr("/sft is not empty (it belongs to job sft); choose another output_dir"));
}

TEST_F(TrainingJobRunnerTest, RefusesAFolderThatAnotherLearnerUses) {
  const auto other = RunFolder::Open(root() + "/shared", "shared");
  ASSERT_TRUE(other.ok()) << other.status();
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  const auto result = learner.Run("shared", TinyWorkplace::RlSpec("shared", 2));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(result.status()), "RUN_FOLDER_IN_USE");
  EXPECT_THAT(std::string(result.status().message()),
              HasSubstr("/shared is in use by another learner"));
  EXPECT_FALSE(std::filesystem::exists(root() + "/shared/job.json"));
}

TEST_F(TrainingJobRunnerTest, OverlongPromptsAreCountedAndLeftOutOrRefused) {
  const std::string long_row =
      absl::StrCat("{\"prompt\":\"", std::string(32, '7'), "\",\"answer\":\"a\"}\n");
  WriteText(root() + "/long.jsonl", long_row + ReadText(root() + "/train.jsonl") + long_row);
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("overlong", 1);
  spec.mutable_data()->set_train("long.jsonl");
  const auto refused = learner.Run("overlong", spec);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(refused.status()), "PROMPT_TOO_LONG");
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("long.jsonl:1: a prompt of 32 tokens needs room for 33, the model has 32"));

  spec.mutable_data()->set_overlong_prompts(v1::OVERLONG_PROMPTS_SKIP);
  ASSERT_TRUE(learner.Run("overlong", spec).ok());
  ASSERT_THAT(learner.control().notices(), ElementsAre("PROMPTS_SKIPPED"));
  EXPECT_THAT(learner.control().events()[0].notice().message(), HasSubstr("2 of 66 prompts of"));
  EXPECT_THAT(learner.control().events()[0].notice().message(), HasSubstr("long.jsonl are left"));
}

TEST_F(TrainingJobRunnerTest, BadWeightsAreFoundByCheckAndLeaveNoRunFolder) {
  std::filesystem::copy(root() + "/sft/model", root() + "/torn");
  std::filesystem::resize_file(root() + "/torn/model.safetensors", 5000);
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("from_torn", 2);
  spec.set_model("torn");
  for (const absl::Status& status :
       {learner.runner().Check(spec), learner.Run("from_torn", spec).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(ReasonOf(status), "INVALID_SAFETENSORS");
    EXPECT_THAT(std::string(status.message()), HasSubstr("/torn/model.safetensors': tensor '"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("the file is truncated"));
  }
  EXPECT_FALSE(std::filesystem::exists(root() + "/from_torn"));
  EXPECT_EQ(pool.jobs_begun(), 0);
}

TEST_F(TrainingJobRunnerTest, NanWeightsEndTheRunBeforeItsFirstStep) {
  std::filesystem::copy(root() + "/sft/model", root() + "/nan");
  // The tensors come last in the file.
  std::string bytes = ReadText(root() + "/nan/model.safetensors");
  bytes[bytes.size() - 1] = bytes[bytes.size() - 2] = '\x7f';
  WriteText(root() + "/nan/model.safetensors", bytes);
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("from_nan", 2);
  spec.set_model("nan");
  const absl::Status status = learner.Run("from_nan", spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), "NON_FINITE_WEIGHTS");
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nan/model.safetensors' holds 1 NaN"));
  EXPECT_EQ(pool.jobs_begun(), 0);
}

TEST_F(TrainingJobRunnerTest, AModelFolderWithLinksOutOfTheRootIsRefused) {
  TinyWorkplace workplace;
  TempDir outside;
  TinyLearner learner(workplace.root().path(), nullptr);
  for (const std::string name : {"config.json", "tokenizer.json"}) {
    const std::string file = workplace.root() / ("start/" + name);
    std::filesystem::rename(file, outside / name);
    std::filesystem::create_symlink(outside / name, file);
    const v1::TrainingJobSpec spec = TinyWorkplace::SupervisedSpec(1);
    for (const absl::Status& status :
         {learner.Run("sft", spec).status(), learner.runner().Check(spec)}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
      EXPECT_EQ(ReasonOf(status), "PATH_OUTSIDE_ROOT");
      EXPECT_THAT(std::string(status.message()), HasSubstr(name));
    }
    std::filesystem::remove(file);
    std::filesystem::rename(outside / name, file);
  }
}

TEST_F(TrainingJobRunnerTest, RefusesAFolderInsideAnotherRun) {
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  const v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("sft/inner", 2);
  for (const absl::Status& status :
       {learner.Run("inner", spec).status(), learner.runner().Check(spec)}) {
    EXPECT_EQ(ReasonOf(status), "OUTPUT_DIR_NOT_ALLOWED") << status;
  }
  EXPECT_FALSE(std::filesystem::exists(root() + "/sft/inner"));
}

TEST_F(TrainingJobRunnerTest, CheckCountsRowsThatAreSkipped) {
  const std::string overlong =
      absl::StrCat("{\"prompt\":\"", std::string(40, '1'), "\",\"answer\":\"a\"}\n");
  WriteText(root() + "/with_long.jsonl", overlong + ReadText(root() + "/train.jsonl") + overlong);
  WriteText(root() + "/eval_long.jsonl", overlong + ReadText(root() + "/eval.jsonl"));
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("checked", 2);
  spec.mutable_data()->set_train("with_long.jsonl");
  spec.mutable_data()->set_eval("eval_long.jsonl");
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  EXPECT_EQ(ReasonOf(learner.runner().Inspect(spec).status()), "PROMPT_TOO_LONG");
  spec.mutable_data()->set_overlong_prompts(v1::OVERLONG_PROMPTS_SKIP);
  const auto report = learner.runner().Inspect(spec);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->train_rows_skipped, 2);
  EXPECT_EQ(report->eval_rows_skipped, 1);
}

TEST_F(TrainingJobRunnerTest, CheckFindsWhatOnlyTheLearnerCanSee) {
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  const auto check = [&](const std::function<void(v1::TrainingJobSpec*)>& spoil) {
    v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("checked", 2);
    spoil(&spec);
    return learner.runner().Check(spec);
  };
  const auto expect = [&](const std::function<void(v1::TrainingJobSpec*)>& spoil,
                          absl::StatusCode code, const std::string& reason,
                          const std::string& message) {
    const absl::Status status = check(spoil);
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_EQ(ReasonOf(status), reason) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  };
  // A copy of the model with one file in it changed.
  const auto with_file = [&](const std::string& name, const std::string& file,
                             const std::string& text) {
    std::filesystem::copy(root() + "/sft/model", root() + "/" + name);
    WriteText(root() + "/" + name + "/" + file, text);
    return [name](v1::TrainingJobSpec* spec) { spec->set_model(name); };
  };
  EXPECT_TRUE(check([](v1::TrainingJobSpec*) {}).ok());
  EXPECT_FALSE(std::filesystem::exists(root() + "/checked"));
  using enum absl::StatusCode;
  expect([](auto* spec) { spec->set_model("start"); }, kInvalidArgument, "MODEL_WITHOUT_WEIGHTS",
         "/start has no safetensors; only a supervised job can start at random");
  expect([](auto* spec) { spec->set_model("nowhere"); }, kNotFound, "FILE_NOT_FOUND",
         "/nowhere/config.json': No such file or directory");
  expect([](auto* spec) { spec->set_output_dir("../elsewhere"); }, kPermissionDenied,
         "PATH_OUTSIDE_ROOT", "'../elsewhere' holds '..'");
  expect([](auto* spec) { spec->mutable_data()->set_train("none.jsonl"); }, kNotFound,
         "FILE_NOT_FOUND", "/none.jsonl': No such file or directory");
  expect([](auto* spec) { spec->mutable_data()->set_train("sft.jsonl"); }, kInvalidArgument,
         "BAD_DATASET_ROW", "sft.jsonl:1: no column \"answer\"; the row has prompt, response");
  WriteText(root() + "/empty.jsonl", "\n");
  expect([](auto* spec) { spec->mutable_data()->set_eval("empty.jsonl"); }, kInvalidArgument,
         "EMPTY_DATASET", "empty.jsonl has no rows");
  expect(with_file("moe", "config.json", R"({"model_type": "mixtral"})"), kUnimplemented,
         "UNSUPPORTED_ARCHITECTURE", "/moe/config.json: model_type = \"mixtral\" is not supported");
  expect(with_file("unigram", "tokenizer.json", R"({"model": {"type": "Unigram"}})"),
         kUnimplemented, "UNSUPPORTED_TOKENIZER",
         "/unigram/tokenizer.json: model type Unigram; only byte-level BPE is supported");
  expect(
      [](auto* spec) {
        spec->mutable_reward()->set_type(v1::REWARD_TYPE_REGEX);
        spec->mutable_reward()->set_pattern("(");
      },
      kInvalidArgument, "INVALID_PATTERN", "(");
}

}  // namespace
}  // namespace halfstep
