// SPDX-License-Identifier: Apache-2.0
// Rows that cannot be trained are refused by reason.
#include "learner_server/algorithm/validate_algorithm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "common/base/error_reason.h"

namespace halfstep {
namespace {

constexpr AlgorithmInputs kInputs{.samples_per_prompt = 8};

Algorithm Preset(const char* name) { return *FindAlgorithmPreset(name); }

TEST(ValidateAlgorithmTest, EveryPresetCanBeTrained) {
  for (const Algorithm& preset : AlgorithmPresets()) {
    EXPECT_TRUE(ValidateAlgorithm(preset, kInputs).ok())
        << preset.name << ": " << ValidateAlgorithm(preset, kInputs);
  }
}

TEST(ValidateAlgorithmTest, DefaultsOfEveryObjectiveAndCorrectionPass) {
  for (int i = 0; i <= static_cast<int>(Objective::kDro); ++i) {
    Algorithm algorithm = Preset("icepop");
    algorithm.loss = DefaultOptions(static_cast<Objective>(i));
    EXPECT_TRUE(ValidateAlgorithm(algorithm, kInputs).ok()) << Name(algorithm.loss.objective);
  }
  for (int i = 0; i <= static_cast<int>(CorrectionKind::kVeto); ++i) {
    Algorithm algorithm = Preset("icepop");
    algorithm.correction = DefaultCorrection(static_cast<CorrectionKind>(i));
    EXPECT_TRUE(ValidateAlgorithm(algorithm, kInputs).ok()) << Name(algorithm.correction.kind);
  }
}

struct Refusal {
  const char* reason;
  const char* names;  // what the message must name
  const char* preset;
  std::function<void(Algorithm*, AlgorithmInputs*)> change;
};

const Refusal kRefusals[] = {
    {"GROUP_TOO_SMALL", "group_mean", "dr_grpo",
     [](Algorithm*, AlgorithmInputs* inputs) { inputs->samples_per_prompt = 1; }},
    {"GROUP_TOO_SMALL", "group_mean_batch_whiten", "reinforce_pp",
     [](Algorithm* algorithm, AlgorithmInputs* inputs) {
       algorithm->advantage = AdvantageKind::kGroupMeanBatchWhiten;
       inputs->samples_per_prompt = 1;
     }},
    {"GROUP_TOO_SMALL", "zero_variance", "reinforce_pp",
     [](Algorithm* algorithm, AlgorithmInputs* inputs) {
       algorithm->regularizers.zero_variance = ZeroVarianceGroups::kResample;
       inputs->samples_per_prompt = 1;
     }},
    {"GROUP_TOO_SMALL", "zero_variance drop", "reinforce_pp",
     [](Algorithm* algorithm, AlgorithmInputs* inputs) {
       algorithm->regularizers.zero_variance = ZeroVarianceGroups::kDrop;
       inputs->samples_per_prompt = 1;
     }},
    {"RESAMPLING_RUNS_AHEAD", "leave batch.lag", "dapo",
     [](Algorithm*, AlgorithmInputs* inputs) { inputs->runs_ahead = true; }},
    {"GREEDY_RESPONSE_MISSING", "greedy_baseline", "reinforce",
     [](Algorithm* algorithm, AlgorithmInputs*) {
       algorithm->advantage = AdvantageKind::kGreedyBaseline;
     }},
    {"BEHAVIOUR_LOG_PROBS_MISSING", "sequence_is", "pg_seq_is",
     [](Algorithm*, AlgorithmInputs* inputs) { inputs->behaviour_log_probs = false; }},
    {"BEHAVIOUR_LOG_PROBS_MISSING", "ppo_clip", "grpo",
     [](Algorithm*, AlgorithmInputs* inputs) { inputs->behaviour_log_probs = false; }},
    {"RATIO_COUNTED_TWICE", "token_tis", "grpo_token_tis",
     [](Algorithm* algorithm, AlgorithmInputs*) {
       algorithm->old_log_probs = OldLogProbs::kBehaviour;
     }},
    {"DECOUPLED_WITHOUT_CORRECTION", "token_is", "decoupled_ppo",
     [](Algorithm* algorithm, AlgorithmInputs*) { algorithm->correction = {}; }},
    {"OLD_LOG_PROBS_UNUSED", "policy_gradient", "pg_seq_is",
     [](Algorithm* algorithm, AlgorithmInputs*) {
       algorithm->old_log_probs = OldLogProbs::kDecoupled;
     }},
    {"CLIP_OUT_OF_RANGE", "-0.1", "grpo",
     [](Algorithm* algorithm, AlgorithmInputs*) { algorithm->loss.clip_low = -0.1; }},
    {"CLIP_OUT_OF_RANGE", "1.5", "gspo",
     [](Algorithm* algorithm, AlgorithmInputs*) { algorithm->loss.clip_low = 1.5; }},
    {"CLIP_OUT_OF_RANGE", "nan", "cispo",
     [](Algorithm* algorithm, AlgorithmInputs*) { algorithm->loss.clip_high = NAN; }},
    {"CLIP_OUT_OF_RANGE", "gmpo", "grpo",
     [](Algorithm* algorithm, AlgorithmInputs*) {
       algorithm->loss = {.objective = Objective::kGmpo, .clip_low = -0.4};
     }},
    {"DUAL_CLIP_OUT_OF_RANGE", "dual clip is 1", "dapo",
     [](Algorithm* algorithm, AlgorithmInputs*) { algorithm->loss.dual_clip = 1; }},
    {"DUAL_CLIP_OUT_OF_RANGE", "dual clip is -3", "dapo",
     [](Algorithm* algorithm, AlgorithmInputs*) { algorithm->loss.dual_clip = -3; }},
    {"DUAL_CLIP_OUT_OF_RANGE", "cispo", "cispo",
     [](Algorithm* algorithm, AlgorithmInputs*) { algorithm->loss.dual_clip = 3; }},
    {"OBJECTIVE_PARAMETER_OUT_OF_RANGE", "sapo", "grpo",
     [](Algorithm* algorithm, AlgorithmInputs*) {
       algorithm->loss = {.objective = Objective::kSapo, .tau_negative = 0};
     }},
    {"OBJECTIVE_PARAMETER_OUT_OF_RANGE", "dppo_tv", "grpo",
     [](Algorithm* algorithm, AlgorithmInputs*) {
       algorithm->loss = {.objective = Objective::kDppoTv, .delta = 1.5};
     }},
    {"OBJECTIVE_PARAMETER_OUT_OF_RANGE", "dro", "grpo",
     [](Algorithm* algorithm, AlgorithmInputs*) {
       algorithm->loss = {.objective = Objective::kDro, .beta = 0};
     }},
    {"CORRECTION_OUT_OF_RANGE", "cap 0.5", "grpo_token_tis",
     [](Algorithm* algorithm, AlgorithmInputs*) { algorithm->correction.cap = 0.5; }},
    {"CORRECTION_OUT_OF_RANGE", "[5, 0.5]", "icepop",
     [](Algorithm* algorithm, AlgorithmInputs*) {
       std::swap(algorithm->correction.low, algorithm->correction.high);
     }},
    {"CORRECTION_OUT_OF_RANGE", "geometric_mask", "icepop",
     [](Algorithm* algorithm, AlgorithmInputs*) {
       algorithm->correction = {.kind = CorrectionKind::kGeometricMask, .low = 0};
     }},
    {"CORRECTION_OUT_OF_RANGE", "k3_mask", "icepop",
     [](Algorithm* algorithm, AlgorithmInputs*) {
       algorithm->correction = {.kind = CorrectionKind::kK3Mask, .k3_limit = 0};
     }},
    {"CORRECTION_OUT_OF_RANGE", "veto", "icepop",
     [](Algorithm* algorithm, AlgorithmInputs*) {
       algorithm->correction = {.kind = CorrectionKind::kVeto, .min_ratio = 1};
     }},
    {"CORRECTION_CANNOT_NORMALIZE", "correction none", "grpo",
     [](Algorithm* algorithm, AlgorithmInputs*) { algorithm->correction.normalize = true; }},
    {"CORRECTION_CANNOT_NORMALIZE", "current policy", "pg_seq_is",
     [](Algorithm* algorithm, AlgorithmInputs*) { algorithm->correction.normalize = true; }},
    {"REFERENCE_MISSING", "reference", "grpo",
     [](Algorithm* algorithm, AlgorithmInputs*) { algorithm->regularizers.kl.coefficient = 0.1; }},
    {"COEFFICIENT_OUT_OF_RANGE", "-0.1", "grpo",
     [](Algorithm* algorithm, AlgorithmInputs*) { algorithm->regularizers.kl.coefficient = -0.1; }},
    {"COEFFICIENT_OUT_OF_RANGE", "nan", "grpo",
     [](Algorithm* algorithm, AlgorithmInputs*) {
       algorithm->regularizers.entropy_coefficient = NAN;
     }},
    {"OVERLONG_OUT_OF_RANGE", "cache 30", "dapo",
     [](Algorithm* algorithm, AlgorithmInputs*) {
       algorithm->regularizers.overlong = {.enabled = true, .max_length = 20, .cache = 30};
     }},
};

TEST(ValidateAlgorithmTest, RefusesWithReasonAndName) {
  for (const Refusal& refusal : kRefusals) {
    Algorithm algorithm = Preset(refusal.preset);
    AlgorithmInputs inputs = kInputs;
    refusal.change(&algorithm, &inputs);
    const absl::Status status = ValidateAlgorithm(algorithm, inputs);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << refusal.names;
    EXPECT_EQ(ReasonOf(status), refusal.reason) << status;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(refusal.names));
  }
}

TEST(ValidateAlgorithmTest, CorrectionBesideARatioOverMuIsHarmlessWhereMuIsTheOldPolicy) {
  Algorithm algorithm = Preset("grpo_token_tis");
  algorithm.old_log_probs = OldLogProbs::kBehaviour;
  AlgorithmInputs inputs = kInputs;
  inputs.behaviour_is_old = true;
  EXPECT_TRUE(ValidateAlgorithm(algorithm, inputs).ok());
}

TEST(ValidateAlgorithmTest, WhiteningAndGreedyBaselineTakeOneSample) {
  AlgorithmInputs inputs{.samples_per_prompt = 1, .greedy_response = true};
  Algorithm algorithm = Preset("reinforce_pp");
  EXPECT_TRUE(ValidateAlgorithm(algorithm, inputs).ok());
  algorithm.advantage = AdvantageKind::kGreedyBaseline;
  EXPECT_TRUE(ValidateAlgorithm(algorithm, inputs).ok());
}

TEST(ValidateAlgorithmTest, RecomputedRatioNeedsNoBehaviourLogProbs) {
  AlgorithmInputs inputs = kInputs;
  inputs.behaviour_log_probs = false;
  Algorithm algorithm = Preset("grpo");
  algorithm.old_log_probs = OldLogProbs::kRecompute;
  EXPECT_TRUE(ValidateAlgorithm(algorithm, inputs).ok());
  EXPECT_TRUE(ValidateAlgorithm(Preset("reinforce"), inputs).ok());
}

}  // namespace
}  // namespace halfstep
