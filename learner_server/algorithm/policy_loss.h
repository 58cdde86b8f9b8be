// SPDX-License-Identifier: Apache-2.0
// Policy objectives: they read log-probs and write dL/d(log-prob), one number per token, and know
// no model. Derivatives are exactly those of the value, with what is under sg(.) held constant.
#pragma once

#include <cstdint>
#include <span>

#include "learner_server/algorithm/log_ratio.h"

namespace halfstep {

// Losses of a token, A the response's advantage, r = pi / pi_old of the token, low and high of
// PolicyLossOptions. Log-ratios are clamped to +-kLogRatioLimit, and have no gradient beyond.
enum class Objective {
  // -A log pi
  kPolicyGradient,
  // -min(r A, clip(r, 1 - low, 1 + high) A), arXiv 1707.06347; with a dual clip c, where A < 0, no
  // more than -c A, arXiv 1912.09729.
  kPpoClip,
  // -min(s A, clip(s, 1 - low, 1 + high) A) for every token, s = exp(mean over the response of
  // log r), arXiv 2507.18071. The gradient flows through s, so to every token alike.
  kGspo,
  // -sg(clip(r, 1 - low, 1 + high)) A log pi, arXiv 2506.13585: no token loses its gradient.
  kCispo,
  // -A exp(mean over the response of b) for every token, b = min(log r, high) where A > 0 and
  // max(log r, -low) where A < 0, arXiv 2507.20673: low and high are distances of log-ratios.
  kGmpo,
  // -(4 / tau) sigmoid(tau (r - 1)) A, tau = tau_positive where A > 0, else tau_negative, arXiv
  // 2511.20347
  kSapo,
  // -A sg(min(r, 20)) log pi where pi - pi_old <= delta (A > 0) or >= -delta (A <= 0), else 0:
  // DPPO with binary total variation, arXiv 2602.04879
  kDppoTv,
  // -(A log pi - (beta / 2) (log r)^2), arXiv 2405.19107: a token has a gradient also where A is 0.
  kDro,
};

// "policy_gradient", "ppo_clip", "gspo", "cispo", "gmpo", "sapo", "dppo_tv", "dro".
const char* Name(Objective objective);

// Every objective but policy_gradient.
bool HasRatio(Objective objective);

// Fields that an objective does not name are not read.
struct PolicyLossOptions {
  Objective objective = Objective::kPolicyGradient;
  double clip_low = 0.2;
  double clip_high = 0.2;
  double dual_clip = 0;  // c of kPpoClip; 0: none
  double tau_positive = 1.0;
  double tau_negative = 1.05;
  double delta = 0.15;
  double beta = 0.1;
};

// With the bounds that the objective's authors recommend: gspo 3e-4 and 4e-4, gmpo 0.4 and 0.4;
// cispo 1 and 4, that is ratios of at most 5 and no lower bound (ScaleRL, arXiv 2510.13786). The
// beta of dro is of no paper: it depends on the scale of the rewards, and those here are about 1.
PolicyLossOptions DefaultOptions(Objective objective);

// The cap of the ratio in dppo_tv, verl's clip_ratio_c.
inline constexpr double kDppoRatioCap = 20;

// One response.
struct PolicyLossTerm {
  std::span<const float> log_probs;  // log pi of each token, current policy
  // Log-probs of the policy in the denominator of the ratio r; read by objectives with a ratio.
  std::span<const float> old_log_probs;
  double advantage = 0;
  double token_weight = 0;  // TokenWeight of aggregation.h
  // Factor of each token's loss, of correction.h, held constant; empty: 1 each. In kGspo and kGmpo,
  // whose tokens share one ratio, the gradient of a token is that of the sum: it has the mean of
  // the response's factors.
  std::span<const double> correction = {};
};

// Sums over the terms added so far.
struct PolicyLossStatistics {
  double loss = 0;
  int64_t tokens = 0;
  // Tokens that a bound keeps from going on in the direction of A: their gradient is cut off by it
  // (cispo: their ratio is held at it).
  int64_t clipped_low = 0;
  int64_t clipped_high = 0;
  int64_t clipped_dual = 0;  // cut off by the dual clip
  double ratio_sum = 0;      // of r (s in kGspo, the geometric mean in kGmpo) over `tokens`; of 1
                             // for policy_gradient
};

// Writes dL/d(log-prob) of every token of `term` to `dlog_probs` (same length) and adds to
// `statistics`. An advantage of 0 gives zeros, except from kDro.
void PolicyLoss(const PolicyLossOptions& options, const PolicyLossTerm& term,
                std::span<float> dlog_probs, PolicyLossStatistics* statistics);

}  // namespace halfstep
