// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/regularizer.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"

namespace halfstep {

const char* Name(KlEstimator estimator) {
  switch (estimator) {
    case KlEstimator::kK1:
      return "k1";
    case KlEstimator::kK2:
      return "k2";
    case KlEstimator::kK3:
      return "k3";
  }
  return "?";
}

const char* Name(KlPlace place) {
  switch (place) {
    case KlPlace::kLoss:
      return "loss";
    case KlPlace::kReward:
      return "reward";
  }
  return "?";
}

const char* Name(ZeroVarianceGroups groups) {
  switch (groups) {
    case ZeroVarianceGroups::kKeep:
      return "keep";
    case ZeroVarianceGroups::kDrop:
      return "drop";
    case ZeroVarianceGroups::kResample:
      return "resample";
  }
  return "?";
}

KlEstimate EstimateKl(KlEstimator estimator, double log_prob, double reference_log_prob) {
  const double log_ratio = reference_log_prob - log_prob;
  const double x = ClampLogRatio(log_ratio);
  KlEstimate estimate;
  switch (estimator) {
    case KlEstimator::kK1:
      estimate = {.value = -x, .derivative = 1};
      break;
    case KlEstimator::kK2:
      estimate = {.value = x * x / 2, .derivative = -x};
      break;
    case KlEstimator::kK3:
      estimate = {.value = std::expm1(x) - x, .derivative = -std::expm1(x)};
      break;
  }
  if (x != log_ratio) estimate.derivative = 0;
  return estimate;
}

void AddKlLoss(const KlOptions& options, const KlTerm& term, std::span<float> dlog_probs,
               KlStatistics* statistics) {
  HALFSTEP_CHECK_EQ(term.reference_log_probs.size(), term.log_probs.size());
  HALFSTEP_CHECK_EQ(dlog_probs.size(), term.log_probs.size());
  const double weight = options.coefficient * term.token_weight;
  for (size_t t = 0; t < term.log_probs.size(); ++t) {
    const KlEstimate estimate =
        EstimateKl(options.estimator, term.log_probs[t], term.reference_log_probs[t]);
    dlog_probs[t] = static_cast<float>(dlog_probs[t] + weight * estimate.derivative);
    statistics->loss += weight * estimate.value;
    statistics->estimate_sum += estimate.value;
  }
  statistics->tokens += static_cast<int64_t>(term.log_probs.size());
}

double KlPenalty(const KlOptions& options, std::span<const float> log_probs,
                 std::span<const float> reference_log_probs) {
  HALFSTEP_CHECK_EQ(reference_log_probs.size(), log_probs.size());
  double sum = 0;
  for (size_t t = 0; t < log_probs.size(); ++t) {
    sum += EstimateKl(options.estimator, log_probs[t], reference_log_probs[t]).value;
  }
  return options.coefficient * sum;
}

double EntropyBonus(double coefficient, std::span<const float> entropies, double token_weight) {
  double sum = 0;
  for (const float entropy : entropies) sum += entropy;
  return -coefficient * token_weight * sum;
}

double EntropyBonusLogitGradient(const EntropyBonusOptions& options, double log_prob,
                                 double entropy) {
  const double prob = std::exp(log_prob);
  if (prob == 0) return 0;
  return options.coefficient * options.token_weight / options.temperature * prob *
         (log_prob + entropy);
}

OverlongOptions ResolveOverlong(const OverlongOptions& options, int64_t max_new_tokens) {
  OverlongOptions resolved = options;
  if (resolved.max_length == 0) resolved.max_length = max_new_tokens;
  if (resolved.cache == 0) resolved.cache = std::max<int64_t>(resolved.max_length / 5, 1);
  return resolved;
}

double OverlongPenalty(const OverlongOptions& options, int64_t length) {
  if (!options.enabled) return 0;
  HALFSTEP_CHECK_GT(options.max_length, 0);
  HALFSTEP_CHECK_GT(options.cache, 0);
  const int64_t free = options.max_length - options.cache;
  if (length <= free) return 0;
  if (length > options.max_length) return -1;
  return static_cast<double>(free - length) / static_cast<double>(options.cache);
}

}  // namespace halfstep
