// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/validate_algorithm.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

absl::Status Refuse(std::string reason, const std::string& message) {
  return Error(absl::StatusCode::kInvalidArgument, std::move(reason), message);
}

// Written so that NaN fails.
bool Between(double low, double value, double high) { return low <= value && value <= high; }
bool Positive(double value) { return value > 0 && std::isfinite(value); }
bool NotNegative(double value) { return value >= 0 && std::isfinite(value); }

absl::Status CheckAdvantage(const Algorithm& algorithm, const AlgorithmInputs& inputs) {
  if (NeedsGroup(algorithm.advantage) && inputs.samples_per_prompt < 2) {
    return Refuse("GROUP_TOO_SMALL",
                  absl::StrCat("advantage ", Name(algorithm.advantage),
                               " compares the responses to a prompt, and there is ",
                               inputs.samples_per_prompt,
                               ": take 2 samples or more per prompt, or advantage batch_whiten"));
  }
  if (algorithm.regularizers.zero_variance != ZeroVarianceGroups::kKeep &&
      inputs.samples_per_prompt < 2) {
    return Refuse("GROUP_TOO_SMALL",
                  absl::StrCat("zero_variance ", Name(algorithm.regularizers.zero_variance),
                               " leaves nothing of groups of 1 sample, whose scores are all equal: "
                               "take 2 samples or more per prompt, or zero_variance keep"));
  }
  if (algorithm.regularizers.zero_variance == ZeroVarianceGroups::kResample && inputs.runs_ahead) {
    return Refuse("RESAMPLING_RUNS_AHEAD",
                  "zero_variance resample decides by the scores of a batch which prompts the next "
                  "one begins with, so generation cannot run ahead: leave batch.lag and "
                  "batch.max_lag out, or take zero_variance drop");
  }
  if (algorithm.advantage == AdvantageKind::kGreedyBaseline && !inputs.greedy_response) {
    return Refuse("GREEDY_RESPONSE_MISSING",
                  "advantage greedy_baseline needs the score of a greedy response to every prompt "
                  "and none is generated ahead of training: take batch.lag instead of "
                  "batch.max_lag, or advantage leave_one_out");
  }
  return absl::OkStatus();
}

absl::Status CheckPolicies(const Algorithm& algorithm, const AlgorithmInputs& inputs) {
  const bool corrects = algorithm.correction.kind != CorrectionKind::kNone;
  const bool has_ratio = HasRatio(algorithm.loss.objective);
  const bool behaviour_ratio = RatioDenominator(algorithm) == PolicySource::kBehaviour;
  if (corrects && !inputs.behaviour_log_probs) {
    return Refuse("BEHAVIOUR_LOG_PROBS_MISSING",
                  absl::StrCat("correction ", Name(algorithm.correction.kind),
                               " needs the behaviour log-prob of every token and the responses "
                               "come without: take rollouts that send them, or correction none"));
  }
  if (behaviour_ratio && !inputs.behaviour_log_probs) {
    return Refuse("BEHAVIOUR_LOG_PROBS_MISSING",
                  absl::StrCat("objective ", Name(algorithm.loss.objective),
                               " divides by the behaviour policy and the responses come without "
                               "its log-probs: take old_log_probs recompute"));
  }
  if (behaviour_ratio && corrects && !inputs.behaviour_is_old) {
    return Refuse("RATIO_COUNTED_TWICE",
                  absl::StrCat("objective ", Name(algorithm.loss.objective), " over pi / mu and ",
                               "correction ", Name(algorithm.correction.kind),
                               " both weigh by the way from the behaviour policy: take "
                               "old_log_probs recompute, or correction none"));
  }
  if (algorithm.old_log_probs != OldLogProbs::kDecoupled) return absl::OkStatus();
  if (!has_ratio) {
    return Refuse("OLD_LOG_PROBS_UNUSED",
                  absl::StrCat("objective ", Name(algorithm.loss.objective),
                               " has no ratio over pi_old to decouple: take old_log_probs "
                               "behaviour, or objective ppo_clip"));
  }
  if (!corrects) {
    return Refuse("DECOUPLED_WITHOUT_CORRECTION",
                  "old_log_probs decoupled and correction none leave out the way from mu to "
                  "pi_old: take correction token_is, or old_log_probs recompute");
  }
  return absl::OkStatus();
}

absl::Status CheckClip(const PolicyLossOptions& loss) {
  const bool log_bounds = loss.objective == Objective::kGmpo;
  const bool clips = log_bounds || loss.objective == Objective::kPpoClip ||
                     loss.objective == Objective::kGspo || loss.objective == Objective::kCispo;
  const bool low_fits = log_bounds ? NotNegative(loss.clip_low) : Between(0, loss.clip_low, 1);
  if (clips && (!low_fits || !NotNegative(loss.clip_high))) {
    return Refuse("CLIP_OUT_OF_RANGE",
                  absl::StrCat("objective ", Name(loss.objective), " has clip [", loss.clip_low,
                               ", ", loss.clip_high, "]: both are distances of 0 or more",
                               log_bounds ? "" : ", and the lower at most 1, which is no bound"));
  }
  if (loss.dual_clip == 0) return absl::OkStatus();
  if (loss.objective != Objective::kPpoClip) {
    return Refuse("DUAL_CLIP_OUT_OF_RANGE",
                  absl::StrCat("objective ", Name(loss.objective), " has no dual clip, and it is ",
                               loss.dual_clip, ": take 0, or objective ppo_clip"));
  }
  if (!(loss.dual_clip > 1) || !std::isfinite(loss.dual_clip)) {
    return Refuse("DUAL_CLIP_OUT_OF_RANGE",
                  absl::StrCat("dual clip is ", loss.dual_clip,
                               ": it bounds ratios above 1; take more than 1, such as 3, or 0 for "
                               "none"));
  }
  return absl::OkStatus();
}

absl::Status CheckObjective(const PolicyLossOptions& loss) {
  HALFSTEP_RETURN_IF_ERROR(CheckClip(loss));
  const std::string reason = "OBJECTIVE_PARAMETER_OUT_OF_RANGE";
  if (loss.objective == Objective::kSapo &&
      (!Positive(loss.tau_positive) || !Positive(loss.tau_negative))) {
    return Refuse(reason, absl::StrCat("objective sapo has temperatures ", loss.tau_positive,
                                       " and ", loss.tau_negative, ": both must be above 0"));
  }
  if (loss.objective == Objective::kDppoTv && !(Positive(loss.delta) && loss.delta <= 1)) {
    return Refuse(reason,
                  absl::StrCat("objective dppo_tv has delta ", loss.delta,
                               ": it is a difference of probabilities, above 0 and at most 1"));
  }
  if (loss.objective == Objective::kDro && !Positive(loss.beta)) {
    return Refuse(reason, absl::StrCat("objective dro has beta ", loss.beta,
                                       ": it must be above 0; without the penalty take objective "
                                       "policy_gradient"));
  }
  return absl::OkStatus();
}

// What is wrong with the bounds; empty: nothing.
std::string WrongBound(const CorrectionOptions& correction) {
  switch (correction.kind) {
    case CorrectionKind::kTokenTis:
    case CorrectionKind::kSequenceTis:
    case CorrectionKind::kSequenceMis:
      if (correction.cap >= 1) return "";  // infinity is no cap
      return absl::StrCat("cap ", correction.cap, ": it must let ratios of 1 pass, take 1 or more");
    case CorrectionKind::kIcePop:
    case CorrectionKind::kGeometricMask:
      if (Positive(correction.low) && Between(correction.low, 1, correction.high)) return "";
      return absl::StrCat("bounds [", correction.low, ", ", correction.high,
                          "]: the lower must be above 0 and at most 1, the upper at least 1");
    case CorrectionKind::kK3Mask:
      if (Positive(correction.k3_limit)) return "";
      return absl::StrCat("limit ", correction.k3_limit, ": it must be above 0");
    case CorrectionKind::kVeto:
      if (Positive(correction.min_ratio) && correction.min_ratio < 1) return "";
      return absl::StrCat("smallest ratio ", correction.min_ratio,
                          ": it must be above 0 and below 1");
    default:
      return "";
  }
}

absl::Status CheckCorrection(const Algorithm& algorithm) {
  const CorrectionOptions& correction = algorithm.correction;
  const std::string wrong = WrongBound(correction);
  if (!wrong.empty()) {
    return Refuse("CORRECTION_OUT_OF_RANGE",
                  absl::StrCat("correction ", Name(correction.kind), " has ", wrong));
  }
  if (!correction.normalize) return absl::OkStatus();
  if (correction.kind == CorrectionKind::kNone) {
    return Refuse("CORRECTION_CANNOT_NORMALIZE",
                  "correction none has no weights to normalize: choose a correction, or do not "
                  "normalize");
  }
  if (CorrectionNumerator(algorithm) == PolicySource::kCurrent) {
    return Refuse("CORRECTION_CANNOT_NORMALIZE",
                  absl::StrCat("objective ", Name(algorithm.loss.objective),
                               " weighs by the current policy, and the mean of its weights is not "
                               "known before the step's first backward: do not normalize, or take "
                               "objective ppo_clip and old_log_probs recompute"));
  }
  return absl::OkStatus();
}

absl::Status CheckRegularizers(const RegularizerOptions& options, const AlgorithmInputs& inputs) {
  if (!NotNegative(options.kl.coefficient) || !NotNegative(options.entropy_coefficient)) {
    return Refuse("COEFFICIENT_OUT_OF_RANGE",
                  absl::StrCat("coefficient of KL is ", options.kl.coefficient,
                               ", that of the entropy bonus ", options.entropy_coefficient,
                               ": both must be 0 or more"));
  }
  if (options.kl.coefficient > 0 && !inputs.reference_log_probs) {
    return Refuse("REFERENCE_MISSING",
                  absl::StrCat("KL with coefficient ", options.kl.coefficient,
                               " needs a reference policy and the job has none: name one, or take "
                               "coefficient 0"));
  }
  const OverlongOptions& overlong = options.overlong;
  if (!overlong.enabled) return absl::OkStatus();
  const bool cache_fits = overlong.max_length == 0 || overlong.cache <= overlong.max_length;
  if (overlong.max_length < 0 || overlong.cache < 0 || !cache_fits) {
    return Refuse(
        "OVERLONG_OUT_OF_RANGE",
        absl::StrCat("overlong shaping has max_length ", overlong.max_length, " and cache ",
                     overlong.cache, ": the cache is a part of max_length, neither is negative"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateAlgorithm(const Algorithm& algorithm, const AlgorithmInputs& inputs) {
  HALFSTEP_RETURN_IF_ERROR(CheckAdvantage(algorithm, inputs));
  HALFSTEP_RETURN_IF_ERROR(CheckPolicies(algorithm, inputs));
  HALFSTEP_RETURN_IF_ERROR(CheckObjective(algorithm.loss));
  HALFSTEP_RETURN_IF_ERROR(CheckCorrection(algorithm));
  return CheckRegularizers(algorithm.regularizers, inputs);
}

}  // namespace halfstep
