// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/policy_loss.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"

namespace halfstep {
namespace {

// A token's loss before its weight, its derivative, and which bound cut it off.
struct TokenLoss {
  double loss = 0;
  double derivative = 0;
  double ratio = 1;
  bool clipped_low = false;
  bool clipped_high = false;
};

TokenLoss PpoClip(const PolicyLossOptions& options, double log_ratio, double advantage) {
  TokenLoss token;
  const double clamped = std::clamp(log_ratio, -kLogRatioLimit, kLogRatioLimit);
  token.ratio = std::exp(clamped);
  const double bounded = std::clamp(token.ratio, 1 - options.clip_low, 1 + options.clip_high);
  token.clipped_low = advantage < 0 && token.ratio < bounded;
  token.clipped_high = advantage > 0 && token.ratio > bounded;
  if (token.clipped_low || token.clipped_high) {
    token.loss = -bounded * advantage;
    return token;
  }
  token.loss = -token.ratio * advantage;
  if (clamped == log_ratio) token.derivative = -token.ratio * advantage;
  return token;
}

}  // namespace

const char* Name(Objective objective) {
  switch (objective) {
    case Objective::kPolicyGradient:
      return "policy_gradient";
    case Objective::kPpoClip:
      return "ppo_clip";
  }
  return "?";
}

void PolicyLoss(const PolicyLossOptions& options, const PolicyLossTerm& term,
                std::span<float> dlog_probs, PolicyLossStatistics* statistics) {
  HALFSTEP_CHECK_EQ(dlog_probs.size(), term.log_probs.size());
  const bool has_ratio = options.objective == Objective::kPpoClip;
  if (has_ratio) HALFSTEP_CHECK_EQ(term.old_log_probs.size(), term.log_probs.size());
  for (size_t t = 0; t < term.log_probs.size(); ++t) {
    const double log_prob = term.log_probs[t];
    const TokenLoss token =
        has_ratio ? PpoClip(options, log_prob - term.old_log_probs[t], term.advantage)
                  : TokenLoss{.loss = -term.advantage * log_prob, .derivative = -term.advantage};
    dlog_probs[t] = static_cast<float>(token.derivative * term.token_weight);
    statistics->loss += token.loss * term.token_weight;
    statistics->ratio_sum += token.ratio;
    statistics->clipped_low += token.clipped_low;
    statistics->clipped_high += token.clipped_high;
  }
  statistics->tokens += static_cast<int64_t>(term.log_probs.size());
}

}  // namespace halfstep
