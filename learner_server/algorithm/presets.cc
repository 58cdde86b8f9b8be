// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/presets.h"

#include <array>

namespace halfstep {
namespace {

PolicyLossOptions PpoClip(double low, double high, double dual_clip = 0) {
  return {
      .objective = Objective::kPpoClip, .clip_low = low, .clip_high = high, .dual_clip = dual_clip};
}

std::array<Algorithm, 15> MakePresets() {
  const PolicyLossOptions policy_gradient = DefaultOptions(Objective::kPolicyGradient);
  // "GRPO" of arXiv 2510.26788, to which it adds corrections, is dr_grpo.
  const PolicyLossOptions paper_clip = PpoClip(0.2, 0.28);
  return {{
      {.name = "reinforce",
       .advantage = AdvantageKind::kGroupMean,
       .loss = policy_gradient,
       .aggregation = Aggregation::kSequenceMeanTokenSumNorm},
      {.name = "grpo",
       .advantage = AdvantageKind::kGroupMeanStd,
       .loss = PpoClip(0.2, 0.2),
       .aggregation = Aggregation::kSequenceMeanTokenMean},
      {.name = "dr_grpo",
       .advantage = AdvantageKind::kGroupMean,
       .loss = paper_clip,
       .aggregation = Aggregation::kSequenceMeanTokenSumNorm},
      {.name = "grpo_token_tis",
       .advantage = AdvantageKind::kGroupMean,
       .loss = paper_clip,
       .aggregation = Aggregation::kSequenceMeanTokenSumNorm,
       .correction = DefaultCorrection(CorrectionKind::kTokenTis),
       .old_log_probs = OldLogProbs::kRecompute},
      {.name = "grpo_seq_mis",
       .advantage = AdvantageKind::kGroupMean,
       .loss = paper_clip,
       .aggregation = Aggregation::kSequenceMeanTokenSumNorm,
       .correction = DefaultCorrection(CorrectionKind::kSequenceMis),
       .old_log_probs = OldLogProbs::kRecompute},
      {.name = "gspo",
       .advantage = AdvantageKind::kGroupMeanStd,
       .loss = DefaultOptions(Objective::kGspo),
       .aggregation = Aggregation::kSequenceMeanTokenMean},
      {.name = "pg_seq_is",
       .advantage = AdvantageKind::kGroupMean,
       .loss = policy_gradient,
       .aggregation = Aggregation::kSequenceMeanTokenSumNorm,
       .correction = DefaultCorrection(CorrectionKind::kSequenceIs)},
      {.name = "pg_seq_tis",
       .advantage = AdvantageKind::kGroupMean,
       .loss = policy_gradient,
       .aggregation = Aggregation::kSequenceMeanTokenSumNorm,
       .correction = DefaultCorrection(CorrectionKind::kSequenceTis)},
      {.name = "pg_seq_mis",
       .advantage = AdvantageKind::kGroupMean,
       .loss = policy_gradient,
       .aggregation = Aggregation::kSequenceMeanTokenSumNorm,
       .correction = DefaultCorrection(CorrectionKind::kSequenceMis)},
      {.name = "dapo",
       .advantage = AdvantageKind::kGroupMeanStd,
       .loss = PpoClip(0.2, 0.28, 10),
       .aggregation = Aggregation::kTokenMean,
       .regularizers = {.overlong = {.enabled = true},
                        .zero_variance = ZeroVarianceGroups::kResample}},
      {.name = "cispo",
       .advantage = AdvantageKind::kGroupMeanStd,
       .loss = DefaultOptions(Objective::kCispo),
       .aggregation = Aggregation::kTokenMean},
      {.name = "rloo",
       .advantage = AdvantageKind::kLeaveOneOut,
       .loss = policy_gradient,
       .aggregation = Aggregation::kSequenceMeanTokenSum},
      {.name = "reinforce_pp",
       .advantage = AdvantageKind::kBatchWhiten,
       .loss = PpoClip(0.2, 0.2),
       .aggregation = Aggregation::kTokenMean},
      {.name = "icepop",
       .advantage = AdvantageKind::kGroupMeanStd,
       .loss = PpoClip(0.2, 0.2),
       .aggregation = Aggregation::kSequenceMeanTokenMean,
       .correction = DefaultCorrection(CorrectionKind::kIcePop),
       .old_log_probs = OldLogProbs::kRecompute},
      {.name = "decoupled_ppo",
       .advantage = AdvantageKind::kGroupMeanStd,
       .loss = PpoClip(0.2, 0.2),
       .aggregation = Aggregation::kTokenMean,
       .correction = DefaultCorrection(CorrectionKind::kTokenIs),
       .old_log_probs = OldLogProbs::kDecoupled},
  }};
}

}  // namespace

const char* Name(OldLogProbs old_log_probs) {
  switch (old_log_probs) {
    case OldLogProbs::kBehaviour:
      return "behaviour";
    case OldLogProbs::kRecompute:
      return "recompute";
    case OldLogProbs::kDecoupled:
      return "decoupled";
  }
  return "?";
}

PolicySource RatioDenominator(const Algorithm& algorithm) {
  if (!HasRatio(algorithm.loss.objective)) return PolicySource::kNone;
  return algorithm.old_log_probs == OldLogProbs::kBehaviour ? PolicySource::kBehaviour
                                                            : PolicySource::kOld;
}

PolicySource CorrectionNumerator(const Algorithm& algorithm) {
  if (algorithm.correction.kind == CorrectionKind::kNone) return PolicySource::kNone;
  switch (RatioDenominator(algorithm)) {
    case PolicySource::kNone:
      return PolicySource::kCurrent;
    case PolicySource::kOld:
      return PolicySource::kOld;
    default:
      return PolicySource::kNone;
  }
}

bool TrainsOnZeroAdvantage(const Algorithm& algorithm) {
  const RegularizerOptions& regularizers = algorithm.regularizers;
  const bool kl = regularizers.kl.coefficient > 0 && regularizers.kl.place == KlPlace::kLoss;
  return algorithm.loss.objective == Objective::kDro || kl || regularizers.entropy_coefficient > 0;
}

std::span<const Algorithm> AlgorithmPresets() {
  static const std::array<Algorithm, 15> kPresets = MakePresets();
  return kPresets;
}

const Algorithm* FindAlgorithmPreset(const std::string& name) {
  for (const Algorithm& preset : AlgorithmPresets()) {
    if (name == preset.name) return &preset;
  }
  return nullptr;
}

const Algorithm& SupervisedAlgorithm() {
  static constexpr Algorithm kSupervised{.name = "sft"};
  return kSupervised;
}

}  // namespace halfstep
