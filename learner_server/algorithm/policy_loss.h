// SPDX-License-Identifier: Apache-2.0
// Policy objectives: they read log-probs and write dL/d(log-prob), one number per token, and know
// no model.
#pragma once

#include <cstdint>
#include <span>

namespace halfstep {

enum class Objective {
  kPolicyGradient,  // -A log pi
  kPpoClip,         // -min(r A, clip(r, 1 - low, 1 + high) A), arXiv 1707.06347
};

// "policy_gradient", "ppo_clip".
const char* Name(Objective objective);

struct PolicyLossOptions {
  Objective objective = Objective::kPolicyGradient;
  double clip_low = 0.2;
  double clip_high = 0.2;
};

// Log-ratios beyond this are clamped, and have no gradient.
inline constexpr double kLogRatioLimit = 20;

// One response.
struct PolicyLossTerm {
  std::span<const float> log_probs;  // log pi of each token, current policy
  // Log-probs of the policy in the denominator of the ratio r; read by objectives with a ratio.
  std::span<const float> old_log_probs;
  double advantage = 0;
  double token_weight = 0;  // TokenWeight of aggregation.h
};

// Sums over the terms added so far.
struct PolicyLossStatistics {
  double loss = 0;
  int64_t tokens = 0;
  int64_t clipped_low = 0;   // tokens whose gradient the lower bound cut off (A < 0)
  int64_t clipped_high = 0;  // the upper bound (A > 0)
  double ratio_sum = 0;      // of r over `tokens`; of 1 for policy_gradient
};

// Writes dL/d(log-prob) of every token of `term` to `dlog_probs` (same length) and adds to
// `statistics`.
void PolicyLoss(const PolicyLossOptions& options, const PolicyLossTerm& term,
                std::span<float> dlog_probs, PolicyLossStatistics* statistics);

}  // namespace halfstep
