// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/explain.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace halfstep {
namespace {

std::string Formula(AdvantageKind kind) {
  switch (kind) {
    case AdvantageKind::kGroupMean:
      return "A = R - mean of the group";
    case AdvantageKind::kGroupMeanStd:
      return "A = (R - mean of the group) / (std of the group + 1e-6)";
    case AdvantageKind::kLeaveOneOut:
      return "A = R - mean of the others of the group";
    case AdvantageKind::kBatchWhiten:
      return "A = (R - mean of the batch) / sqrt(variance of the batch + 1e-8)";
    case AdvantageKind::kGroupMeanBatchWhiten:
      return "A = D / sqrt(variance of D over the batch + 1e-8), D = R - mean of the group";
    case AdvantageKind::kGreedyBaseline:
      return "A = R - R of the greedy response";
  }
  return "?";
}

std::string ClipInterval(const PolicyLossOptions& loss) {
  return absl::StrCat("1 - ", loss.clip_low, ", 1 + ", loss.clip_high);
}

std::string DualClip(const PolicyLossOptions& loss) {
  return loss.dual_clip == 0 ? "" : absl::StrCat("; at most -", loss.dual_clip, " A where A < 0");
}

std::string Formula(const PolicyLossOptions& loss) {
  switch (loss.objective) {
    case Objective::kPolicyGradient:
      return "l = -A log pi";
    case Objective::kPpoClip:
      return absl::StrCat("l = -min(r A, clip(r, ", ClipInterval(loss), ") A)", DualClip(loss));
    case Objective::kGspo:
      return absl::StrCat("l = -min(s A, clip(s, ", ClipInterval(loss),
                          ") A), s = exp(mean over the response of log r)");
    case Objective::kCispo:
      return absl::StrCat("l = -stop(clip(r, ", ClipInterval(loss), ")) A log pi");
    case Objective::kGmpo:
      return absl::StrCat("l = -A exp(mean over the response of b), b = min(log r, ",
                          loss.clip_high, ") where A > 0, max(log r, -", loss.clip_low,
                          ") where A < 0");
    case Objective::kSapo:
      return absl::StrCat("l = -(4 / tau) sigmoid(tau (r - 1)) A, tau = ", loss.tau_positive,
                          " where A > 0, else ", loss.tau_negative);
    case Objective::kDppoTv:
      return absl::StrCat("l = -A stop(min(r, ", kDppoRatioCap, ")) log pi, 0 where |pi - pi_old|",
                          " went beyond ", loss.delta, " in the direction of A");
    case Objective::kDro:
      return absl::StrCat("l = -(A log pi - ", loss.beta, " / 2 (log r)^2)");
  }
  return "?";
}

std::string Formula(const Algorithm& algorithm, OldLogProbs old_log_probs) {
  switch (RatioDenominator(algorithm)) {
    case PolicySource::kNone:
      return "no ratio, no second forward";
    case PolicySource::kBehaviour:
      return "r = pi / mu, no second forward";
    default:
      return absl::StrCat("r = pi / pi_old, pi_old from one more forward",
                          old_log_probs == OldLogProbs::kDecoupled ? ", batches may be older" : "");
  }
}

std::string WeightFormula(const CorrectionOptions& correction) {
  const std::string bounds = absl::StrCat("in [", correction.low, ", ", correction.high, "]");
  switch (correction.kind) {
    case CorrectionKind::kNone:
      return "w = 1";
    case CorrectionKind::kTokenIs:
      return "w = e^d";
    case CorrectionKind::kTokenTis:
      return absl::StrCat("w = min(e^d, ", correction.cap, ")");
    case CorrectionKind::kSequenceIs:
      return "w = e^(sum of d)";
    case CorrectionKind::kSequenceTis:
      return absl::StrCat("w = min(e^(sum of d), ", correction.cap, ")");
    case CorrectionKind::kSequenceMis:
      return absl::StrCat("w = e^(sum of d) where at most ", correction.cap, ", else 0");
    case CorrectionKind::kIcePop:
      return absl::StrCat("w = e^d where ", bounds, ", else 0");
    case CorrectionKind::kGeometricMask:
      return absl::StrCat("w = 1 where e^(mean of d) is ", bounds, ", else 0");
    case CorrectionKind::kK3Mask:
      return absl::StrCat("w = 1 where the mean of e^d - 1 - d is at most ", correction.k3_limit,
                          ", else 0");
    case CorrectionKind::kVeto:
      return absl::StrCat("w = 1 where every e^d is at least ", correction.min_ratio, ", else 0");
  }
  return "?";
}

std::string CorrectionFormula(const Algorithm& algorithm) {
  const std::string formula =
      absl::StrCat(WeightFormula(algorithm.correction),
                   algorithm.correction.normalize ? ", divided by its mean over the step" : "");
  switch (CorrectionNumerator(algorithm)) {
    case PolicySource::kCurrent:
      return absl::StrCat(formula, ", d = stop(log pi) - log mu");
    case PolicySource::kOld:
      return absl::StrCat(formula, ", d = log pi_old - log mu");
    default:
      if (algorithm.correction.kind == CorrectionKind::kNone) return formula;
      return "w = 1, since r is over mu";
  }
}

std::string AggregationFormula(const Algorithm& algorithm) {
  switch (algorithm.aggregation) {
    case Aggregation::kTokenMean:
      return "L = sum of w l / tokens";
    case Aggregation::kSequenceMeanTokenMean:
      return "L = mean over responses of (sum of w l / tokens of the response)";
    case Aggregation::kSequenceMeanTokenSum:
      return "L = mean over responses of sum of w l";
    case Aggregation::kSequenceMeanTokenSumNorm:
      return absl::StrCat("L = mean over responses of (sum of w l / N), N = ",
                          algorithm.constant_length == 0 ? "max_new_tokens unless given"
                                                         : absl::StrCat(algorithm.constant_length));
  }
  return "?";
}

std::string OverlongFormula(const OverlongOptions& overlong) {
  const std::string length =
      overlong.max_length == 0 ? std::string("max_new_tokens") : absl::StrCat(overlong.max_length);
  const std::string cache =
      overlong.cache == 0 ? absl::StrCat(length, " / 5") : absl::StrCat(overlong.cache);
  return absl::StrCat("overlong: R falls by up to 1 over the last ", cache, " tokens before ",
                      length);
}

std::string Formula(const RegularizerOptions& options) {
  std::vector<std::string> parts;
  const KlOptions& kl = options.kl;
  if (kl.coefficient > 0) {
    parts.push_back(absl::StrCat(kl.coefficient, " KL to the reference by ", Name(kl.estimator),
                                 kl.place == KlPlace::kLoss ? " in the loss" : " off the score"));
    if (kl.place == KlPlace::kLoss && kl.estimator == KlEstimator::kK1) {
      parts.back() += " (expected gradient 0)";
    }
  }
  if (options.entropy_coefficient > 0) {
    parts.push_back(absl::StrCat("entropy bonus ", options.entropy_coefficient));
  }
  if (options.overlong.enabled) parts.push_back(OverlongFormula(options.overlong));
  if (options.zero_variance != ZeroVarianceGroups::kKeep) {
    parts.push_back(absl::StrCat("groups of equal scores: ", Name(options.zero_variance)));
  }
  return parts.empty() ? "none" : absl::StrJoin(parts, "; ");
}

}  // namespace

std::vector<std::string> Explain(const Algorithm& algorithm) {
  return {
      absl::StrCat("preset         ", algorithm.name),
      absl::StrCat("advantage      ", Name(algorithm.advantage), ": ",
                   Formula(algorithm.advantage)),
      absl::StrCat("old_log_probs  ", Name(algorithm.old_log_probs), ": ",
                   Formula(algorithm, algorithm.old_log_probs)),
      absl::StrCat("objective      ", Name(algorithm.loss.objective), ": ",
                   Formula(algorithm.loss)),
      absl::StrCat("correction     ", Name(algorithm.correction.kind), ": ",
                   CorrectionFormula(algorithm)),
      absl::StrCat("aggregation    ", Name(algorithm.aggregation), ": ",
                   AggregationFormula(algorithm)),
      absl::StrCat("regularizers   ", Formula(algorithm.regularizers)),
  };
}

}  // namespace halfstep
