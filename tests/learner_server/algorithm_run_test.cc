// SPDX-License-Identifier: Apache-2.0
// Whole runs of every preset, and of what a job may choose beside them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "common/base/error_reason.h"
#include "common/config/enum_names.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class AlgorithmRunTest : public TinyRunTest {
 protected:
  static v1::TrainingJobSpec SpecOf(const std::string& output, int64_t steps,
                                    v1::AlgorithmPreset preset) {
    v1::TrainingJobSpec spec = TinyWorkplace::RlSpec(output, steps);
    spec.mutable_algorithm()->set_preset(preset);
    return spec;
  }

  static std::vector<nlohmann::json> MetricsOf(const v1::TrainingJobSpec& spec) {
    return ReadLines(root() + "/" + spec.output_dir() + "/metrics.jsonl");
  }

  // What a check says of a job, which a run says too.
  static absl::Status Refusal(const v1::TrainingJobSpec& spec) {
    LocalRolloutPool pool;
    TinyLearner learner(root(), &pool);
    const absl::Status checked = learner.runner().Check(spec);
    EXPECT_EQ(learner.Run(spec.output_dir(), spec).status(), checked);
    EXPECT_EQ(pool.jobs_begun(), 0);
    return checked;
  }
};

TEST_F(AlgorithmRunTest, EveryPresetAndPrecisionRuns) {
  std::set<std::string> digests;
  for (int preset = v1::AlgorithmPreset_MIN + 1; preset <= v1::AlgorithmPreset_MAX; ++preset) {
    v1::TrainingJobSpec spec = TinyWorkplace::RlSpec(absl::StrCat("preset_", preset), 2);
    spec.mutable_algorithm()->set_preset(static_cast<v1::AlgorithmPreset>(preset));
    spec.mutable_batch()->set_updates(2);
    const v1::RunSummary summary = RunWhole(spec);
    EXPECT_EQ(summary.max_abs_logprob_diff(), 0);
    EXPECT_GT(summary.tokens_compared(), 0) << YamlName(spec.algorithm().preset());
    digests.insert(summary.weights_digest());
  }
  EXPECT_GT(digests.size(), 8u) << "presets that differ train to different weights";
  for (const auto precision : {v1::PRECISION_BF16, v1::PRECISION_FP32}) {
    v1::TrainingJobSpec spec = TinyWorkplace::RlSpec(absl::StrCat("precision_", precision), 2);
    spec.mutable_precision()->set_learner(precision);
    spec.mutable_precision()->set_rollout(precision);
    const v1::RunSummary summary = RunWhole(spec);
    EXPECT_EQ(summary.max_abs_logprob_diff(), 0);
    EXPECT_EQ(summary.final_loss_scale(), 1);
  }
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("precision_mixed", 2);
  spec.set_profile(v1::PROFILE_FAST);
  spec.mutable_precision()->set_rollout(v1::PRECISION_BF16);
  EXPECT_GT(RunWhole(spec).max_abs_logprob_diff(), 0);
}

// Where the rollout's log-probs are the learner's bit for bit, a second forward would only give
// them again.
TEST_F(AlgorithmRunTest, OldLogProbsAreRescoredOnlyWhereTheyDiffer) {
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("old_bypass", 3);
  spec.mutable_algorithm()->set_preset(v1::ALGORITHM_PRESET_GRPO_SEQ_MIS);
  spec.mutable_batch()->set_updates(2);
  const v1::RunSummary bypass = RunWhole(spec);
  for (const auto& line : ReadLines(root() + "/old_bypass/metrics.jsonl")) {
    EXPECT_EQ(line["tokens_rescored"], 0);
    EXPECT_EQ(line["correction_mean"], 1);
    EXPECT_EQ(line["correction_ess"], 1);
  }

  // A batch that an older version generated is rescored, by the version that trains on it.
  spec.set_output_dir("old_lagging");
  spec.set_steps(8);
  spec.mutable_batch()->set_lag(1);
  RunWhole(spec);
  int rescored = 0;
  for (const auto& line : ReadLines(root() + "/old_lagging/metrics.jsonl")) {
    if (line["tokens_compared"] != 0) {  // by the weights in force
      EXPECT_EQ(line["tokens_rescored"], 0);
      continue;
    }
    EXPECT_EQ(line["tokens_rescored"], line["tokens"]);
    EXPECT_NE(line["correction_mean"], 1);
    ++rescored;
  }
  EXPECT_GT(rescored, 3);

  spec.set_output_dir("old_fast");
  spec.set_steps(3);
  spec.mutable_batch()->set_lag(0);
  spec.set_profile(v1::PROFILE_FAST);
  const v1::RunSummary fast = RunWhole(spec);
  for (const auto& line : ReadLines(root() + "/old_fast/metrics.jsonl")) {
    EXPECT_EQ(line["tokens_rescored"], line["tokens"]);
    EXPECT_NE(line["correction_mean"], 1);
    EXPECT_NEAR(line["correction_mean"].get<double>(), 1, 0.1);
  }
  EXPECT_GT(fast.max_abs_logprob_diff(), 0) << "the fast engine is another engine";
  EXPECT_NE(fast.weights_digest(), bypass.weights_digest());
}

// The tiny model answers a, b, c or d, so a group of four is all equal often enough.
TEST_F(AlgorithmRunTest, DapoReplacesGroupsOfEqualScores) {
  v1::TrainingJobSpec spec = SpecOf("dapo", 4, v1::ALGORITHM_PRESET_DAPO);
  spec.set_save_samples(true);
  const v1::RunSummary whole = RunWhole(spec);
  EXPECT_EQ(whole.max_abs_logprob_diff(), 0);
  EXPECT_EQ(whole.tokens_compared(), whole.tokens_trained());
  EXPECT_GT(whole.tokens_generated(), whole.tokens_trained());
  int64_t dropped = 0, groups = 0;
  for (const auto& line : MetricsOf(spec)) {
    dropped += line["groups_dropped"].get<int64_t>();
    groups += line["samples"].get<int64_t>() / 4;
    EXPECT_EQ(line["samples"].get<int64_t>() / 4 - line["groups_dropped"].get<int64_t>(), 8);
  }
  EXPECT_GT(dropped, 0);
  std::set<int64_t> numbers, trained;
  for (const auto& sample : ReadLines(root() + "/dapo/samples.jsonl")) {
    numbers.insert(sample["group"].get<int64_t>());
    if (sample.contains("advantage")) trained.insert(sample["group"].get<int64_t>());
  }
  EXPECT_EQ(numbers.size(), static_cast<size_t>(groups));
  EXPECT_EQ(*numbers.rbegin(), groups - 1) << "prompts are taken in the order of the data";
  EXPECT_EQ(trained.size(), 4u * 8);

  spec.set_output_dir("dapo_again");
  EXPECT_EQ(RunWhole(spec).state_digest(), whole.state_digest());
  spec.set_output_dir("dapo_parts");
  EXPECT_EQ(RunInTwoParts(spec, 2, RunRequest::kStop).state_digest(), whole.state_digest());
}

TEST_F(AlgorithmRunTest, GroupsOfEqualScoresCanBeLeftOut) {
  v1::TrainingJobSpec spec = SpecOf("drops", 3, v1::ALGORITHM_PRESET_GRPO);
  (*spec.mutable_algorithm()->mutable_choices())["zero_variance"] = "drop";
  const v1::RunSummary summary = RunWhole(spec);
  EXPECT_LT(summary.tokens_trained(), summary.tokens_generated());
  int64_t dropped = 0;
  for (const auto& line : MetricsOf(spec)) {
    EXPECT_EQ(line["samples"], 32);
    dropped += line["groups_dropped"].get<int64_t>();
  }
  EXPECT_GT(dropped, 0);
}

TEST_F(AlgorithmRunTest, DynamicSamplingThatFindsNothingEndsTheJobWithItsReason) {
  WriteText(root() + "/hopeless.jsonl",
            "{\"prompt\":\"1+1=\",\"answer\":\"never\"}\n"
            "{\"prompt\":\"1+2=\",\"answer\":\"never\"}\n");
  v1::TrainingJobSpec spec = SpecOf("dapo_hopeless", 4, v1::ALGORITHM_PRESET_DAPO);
  spec.mutable_data()->set_train("hopeless.jsonl");
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  const absl::Status status = learner.Run("dapo_hopeless", spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(status), "NO_MIXED_GROUPS");
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("of 80 groups, 80 have responses of all the same score (80 at 0), and a "
                        "batch needs 8"));
  EXPECT_EQ(learner.control().step(), 0);
}

TEST_F(AlgorithmRunTest, RowsThatCannotBeTrainedAreRefusedWithTheirReason) {
  const auto refused = [&](v1::AlgorithmPreset preset, const auto& change) {
    v1::TrainingJobSpec spec = SpecOf("refused", 2, preset);
    change(spec);
    const absl::Status status = Refusal(spec);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return ReasonOf(status);
  };
  EXPECT_EQ(refused(v1::ALGORITHM_PRESET_DR_GRPO,
                    [](auto& spec) { spec.mutable_batch()->set_samples(1); }),
            "GROUP_TOO_SMALL");
  EXPECT_EQ(
      refused(v1::ALGORITHM_PRESET_DAPO, [](auto& spec) { spec.mutable_batch()->set_lag(1); }),
      "RESAMPLING_RUNS_AHEAD");
  const auto freely = [](auto& spec) {
    (*spec.mutable_algorithm()->mutable_choices())["advantage"] = "greedy_baseline";
    spec.mutable_batch()->set_max_lag(1);
  };
  EXPECT_EQ(refused(v1::ALGORITHM_PRESET_REINFORCE, freely), "GREEDY_RESPONSE_MISSING");
  const auto corrected = [](auto& spec) {
    spec.set_profile(v1::PROFILE_FAST);
    (*spec.mutable_algorithm()->mutable_choices())["correction"] = "sequence_mis";
  };
  EXPECT_EQ(refused(v1::ALGORITHM_PRESET_GRPO, corrected), "RATIO_COUNTED_TWICE");
  EXPECT_EQ(refused(v1::ALGORITHM_PRESET_GRPO,
                    [](auto& spec) {
                      (*spec.mutable_algorithm()->mutable_parameters())["dual_clip"] = 0.5;
                    }),
            "DUAL_CLIP_OUT_OF_RANGE");
}

TEST_F(AlgorithmRunTest, OneSampleIsEnoughWhereNothingIsComparedWithinAGroup) {
  v1::TrainingJobSpec spec = SpecOf("one_sample", 2, v1::ALGORITHM_PRESET_REINFORCE_PP);
  spec.mutable_batch()->set_samples(1);
  spec.mutable_batch()->set_prompts(32);  // so many are never all equal
  EXPECT_GT(RunWhole(spec).tokens_trained(), 0);
  EXPECT_GT(MetricsOf(spec)[0]["grad_norm"], 0);
}

TEST_F(AlgorithmRunTest, GreedyResponsesAreComparedWithAndNotTrainedOn) {
  v1::TrainingJobSpec spec = SpecOf("greedy", 3, v1::ALGORITHM_PRESET_REINFORCE);
  (*spec.mutable_algorithm()->mutable_choices())["advantage"] = "greedy_baseline";
  spec.mutable_batch()->set_samples(1);
  spec.set_save_samples(true);
  const v1::RunSummary summary = RunWhole(spec);
  EXPECT_EQ(summary.max_abs_logprob_diff(), 0);
  EXPECT_EQ(summary.samples_by_rollout().at("local"), 3 * 8);
  EXPECT_EQ(summary.tokens_generated(), summary.tokens_trained());
  const auto samples = ReadLines(root() + "/greedy/samples.jsonl");
  ASSERT_EQ(samples.size(), 3u * 8);
  std::set<double> baselines;
  for (const auto& sample : samples) {
    baselines.insert(sample["reward"].get<double>() - sample["advantage"].get<double>());
  }
  for (const double baseline : baselines) EXPECT_TRUE(baseline == 0 || baseline == 1) << baseline;
  spec.set_output_dir("greedy_parts");
  EXPECT_EQ(RunInTwoParts(spec, 1, RunRequest::kStop).state_digest(), summary.state_digest());
}

TEST_F(AlgorithmRunTest, KlHoldsThePolicyNearItsReference) {
  const auto run = [&](const std::string& output, double kl, const std::string& place) {
    v1::TrainingJobSpec spec = SpecOf(output, 12, v1::ALGORITHM_PRESET_REINFORCE);
    (*spec.mutable_algorithm()->mutable_parameters())["kl"] = kl;
    (*spec.mutable_algorithm()->mutable_choices())["kl_place"] = place;
    (*spec.mutable_algorithm()->mutable_choices())["kl_estimator"] = "k2";
    EXPECT_EQ(RunWhole(spec).max_abs_logprob_diff(), 0);
    return MetricsOf(spec);
  };
  const auto loose = run("kl_loose", 1e-6, "loss");
  EXPECT_EQ(loose[0]["reference_kl"], 0) << "the policy begins as its reference, bit for bit";
  EXPECT_TRUE(loose[0].contains("time_reference"));
  const double far = loose.back()["reference_kl"].get<double>();
  EXPECT_GT(far, 0.01);
  EXPECT_LT(run("kl_loss", 10, "loss").back()["reference_kl"].get<double>(), far / 2);
  EXPECT_LT(run("kl_reward", 10, "reward").back()["reference_kl"].get<double>(), far / 2);
}

TEST_F(AlgorithmRunTest, AReferenceOfAnotherShapeIsRefusedByName) {
  v1::TrainingJobSpec spec = SpecOf("other_reference", 2, v1::ALGORITHM_PRESET_GRPO);
  (*spec.mutable_algorithm()->mutable_parameters())["kl"] = 0.1;
  spec.mutable_algorithm()->set_reference("start");
  EXPECT_EQ(ReasonOf(Refusal(spec)), "MODEL_WITHOUT_WEIGHTS");

  std::filesystem::copy(root() + "/sft/model", root() + "/larger_vocabulary");
  nlohmann::json config = nlohmann::json::parse(ReadText(root() + "/sft/model/config.json"));
  config["vocab_size"] = 300;
  WriteText(root() + "/larger_vocabulary/config.json", config.dump());
  spec.mutable_algorithm()->set_reference("larger_vocabulary");
  const absl::Status status = Refusal(spec);
  EXPECT_EQ(ReasonOf(status), "REFERENCE_MISMATCH");
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("/larger_vocabulary has vocab_size 300"), HasSubstr("has 257")));
}

TEST_F(AlgorithmRunTest, EntropyBonusKeepsThePolicyOpen) {
  const auto entropy = [&](const std::string& output, double coefficient) {
    v1::TrainingJobSpec spec = SpecOf(output, 20, v1::ALGORITHM_PRESET_REINFORCE);
    (*spec.mutable_algorithm()->mutable_parameters())["entropy"] = coefficient;
    EXPECT_EQ(RunWhole(spec).max_abs_logprob_diff(), 0);
    return MetricsOf(spec).back()["entropy"].get<double>();
  };
  EXPECT_GT(entropy("open", 0.5), 2 * entropy("closing", 0));
}

TEST_F(AlgorithmRunTest, EveryObjectiveAdvantageAndCorrectionRuns) {
  const auto run = [&](const std::string& choice, const std::string& value) {
    v1::TrainingJobSpec spec = SpecOf("choice_" + value, 1, v1::ALGORITHM_PRESET_ICEPOP);
    (*spec.mutable_algorithm()->mutable_choices())[choice] = value;
    spec.mutable_batch()->set_updates(2);
    EXPECT_GT(RunWhole(spec).tokens_trained(), 0) << value;
    EXPECT_GT(MetricsOf(spec)[0]["grad_norm"], 0) << value;
  };
  for (const char* value : {"gmpo", "sapo", "dppo_tv", "dro"}) run("objective", value);
  run("advantage", "group_mean_batch_whiten");
  for (const char* value : {"geometric_mask", "k3_mask", "veto"}) run("correction", value);
}

}  // namespace
}  // namespace halfstep
