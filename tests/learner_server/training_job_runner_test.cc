// SPDX-License-Identifier: Apache-2.0
// Whole runs: supervised, and reinforcement learning against a real generation engine.
#include "learner_server/training/training_job_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "common/base/error_reason.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

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

}  // namespace
}  // namespace halfstep
