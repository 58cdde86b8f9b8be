// SPDX-License-Identifier: Apache-2.0
// What is added to the policy objective or to the scores: KL to a reference policy, an entropy
// bonus, the penalty of overlong responses, and what becomes of groups without signal.
#pragma once

#include <cstdint>
#include <span>

#include "learner_server/algorithm/log_ratio.h"

namespace halfstep {

// Estimators of KL(pi || reference) from tokens of pi, x = log reference - log pi, clamped to
// +-kLogRatioLimit (joschu.net/blog/kl-approx.html). Used as losses they have other gradients than
// as values: the expected gradient of k1 is 0, that of k2 is the gradient of the KL, and that of k3
// is the gradient of KL(reference || pi).
enum class KlEstimator {
  kK1,  // -x
  kK2,  // x^2 / 2
  kK3,  // e^x - x - 1
};

// "k1", "k2", "k3".
const char* Name(KlEstimator estimator);

enum class KlPlace {
  kLoss,    // coefficient * estimate of each token, aggregated as the objective's losses are
  kReward,  // coefficient * sum of the estimates over a response leaves its score
};

// "loss", "reward".
const char* Name(KlPlace place);

struct KlOptions {
  KlEstimator estimator = KlEstimator::kK3;
  KlPlace place = KlPlace::kLoss;
  double coefficient = 0;  // 0: off, and no reference is needed
};

struct KlEstimate {
  double value = 0;
  double derivative = 0;  // by log pi; 0 beyond the clamp
};

KlEstimate EstimateKl(KlEstimator estimator, double log_prob, double reference_log_prob);

// One response.
struct KlTerm {
  std::span<const float> log_probs;            // log pi of each token, current policy
  std::span<const float> reference_log_probs;  // of the same length
  double token_weight = 0;                     // TokenWeight of aggregation.h
};

// Sums over the terms added so far.
struct KlStatistics {
  double loss = 0;
  double estimate_sum = 0;  // without coefficient and weight, over `tokens`
  int64_t tokens = 0;
};

// For KlPlace::kLoss: adds coefficient * token_weight * estimate to the loss and its derivative by
// each log-prob to `dlog_probs`, which PolicyLoss has written. The correction's factors do not
// enter.
void AddKlLoss(const KlOptions& options, const KlTerm& term, std::span<float> dlog_probs,
               KlStatistics* statistics);

// For KlPlace::kReward: what to take from the score of a response, in units of the score.
double KlPenalty(const KlOptions& options, std::span<const float> log_probs,
                 std::span<const float> reference_log_probs);

// The entropy bonus: -coefficient * the aggregated entropies H of the policy at each token, nats.
// Its gradient does not go through the log-prob of the sampled token but through every logit of the
// row: the trainer adds EntropyBonusLogitGradient to d loss / d logit of each.
double EntropyBonus(double coefficient, std::span<const float> entropies, double token_weight);

struct EntropyBonusOptions {
  double coefficient = 0;
  double token_weight = 0;
  double temperature = 1;
};

// d loss / d logit_j = coefficient * token_weight / temperature * p_j * (log p_j + H), with
// p = softmax(logits / temperature) and H its entropy in nats. 0 where p_j is 0.
double EntropyBonusLogitGradient(const EntropyBonusOptions& options, double log_prob,
                                 double entropy);

// DAPO's soft overlong punishment, arXiv 2503.14476 equation 13.
struct OverlongOptions {
  bool enabled = false;
  int64_t max_length = 0;  // L_max in tokens; 0: max_new_tokens of the job
  int64_t cache = 0;       // L_cache in tokens; 0: a fifth of max_length, as in the paper
};

// With both lengths in place of 0.
OverlongOptions ResolveOverlong(const OverlongOptions& options, int64_t max_new_tokens);

// What to add to the score of a response of `length` tokens: 0 up to L_max - L_cache, then falling
// linearly to -1 at L_max, and -1 beyond. `options` are resolved; 0 when not enabled.
double OverlongPenalty(const OverlongOptions& options, int64_t length);

// What becomes of groups for which HasZeroVariance of advantage.h holds.
enum class ZeroVarianceGroups {
  kKeep,      // they count in the denominators, with zero advantages
  kDrop,      // they leave loss and denominators
  kResample,  // they are replaced by further prompts: DAPO's dynamic sampling, arXiv 2503.14476
};

// "keep", "drop", "resample".
const char* Name(ZeroVarianceGroups groups);

struct RegularizerOptions {
  KlOptions kl = {};
  double entropy_coefficient = 0;
  OverlongOptions overlong = {};
  ZeroVarianceGroups zero_variance = ZeroVarianceGroups::kKeep;
};

}  // namespace halfstep
