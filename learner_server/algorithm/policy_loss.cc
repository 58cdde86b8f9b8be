// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/policy_loss.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"

namespace halfstep {
namespace {

// A loss before its weight, its derivative, and which bound took effect.
struct Loss {
  double loss = 0;
  double derivative = 0;
  double ratio = 1;
  bool clipped_low = false;
  bool clipped_high = false;
  bool clipped_dual = false;
};

// A token, or a whole response that has one ratio.
struct Point {
  double log_prob = 0;
  double old_log_prob = 0;
  double log_ratio = 0;
  double advantage = 0;

  double clamped() const { return ClampLogRatio(log_ratio); }
  bool moves() const { return clamped() == log_ratio; }
};

Loss PolicyGradient(const PolicyLossOptions&, const Point& at) {
  return {.loss = -at.advantage * at.log_prob, .derivative = -at.advantage};
}

Loss ClippedRatio(const PolicyLossOptions& options, const Point& at) {
  Loss loss;
  const double advantage = at.advantage;
  loss.ratio = std::exp(at.clamped());
  const double bounded = std::clamp(loss.ratio, 1 - options.clip_low, 1 + options.clip_high);
  loss.clipped_low = advantage < 0 && loss.ratio < bounded;
  loss.clipped_high = advantage > 0 && loss.ratio > bounded;
  if (loss.clipped_low || loss.clipped_high) {
    loss.loss = -bounded * advantage;
    return loss;
  }
  loss.loss = -loss.ratio * advantage;
  if (at.moves()) loss.derivative = -loss.ratio * advantage;
  return loss;
}

Loss PpoClip(const PolicyLossOptions& options, const Point& at) {
  const Loss clipped = ClippedRatio(options, at);
  const bool dual = options.dual_clip > 0 && at.advantage < 0 && clipped.ratio > options.dual_clip;
  if (!dual) return clipped;
  return {.loss = -options.dual_clip * at.advantage, .ratio = clipped.ratio, .clipped_dual = true};
}

Loss Cispo(const PolicyLossOptions& options, const Point& at) {
  Loss loss;
  loss.ratio = std::exp(at.clamped());
  const double factor = std::clamp(loss.ratio, 1 - options.clip_low, 1 + options.clip_high);
  loss.clipped_low = loss.ratio < factor;
  loss.clipped_high = loss.ratio > factor;
  loss.loss = -factor * at.advantage * at.log_prob;
  loss.derivative = -factor * at.advantage;
  return loss;
}

Loss Sapo(const PolicyLossOptions& options, const Point& at) {
  Loss loss;
  loss.ratio = std::exp(at.clamped());
  const double tau = at.advantage > 0 ? options.tau_positive : options.tau_negative;
  const double open = 1 / (1 + std::exp(-tau * (loss.ratio - 1)));
  const double shut = 1 / (1 + std::exp(tau * (loss.ratio - 1)));  // 1 - open, when that is tiny
  loss.loss = -4 / tau * open * at.advantage;
  if (at.moves()) loss.derivative = -4 * open * shut * loss.ratio * at.advantage;
  return loss;
}

Loss DppoTv(const PolicyLossOptions& options, const Point& at) {
  Loss loss;
  loss.ratio = std::exp(at.clamped());
  const double moved = std::exp(at.log_prob) - std::exp(at.old_log_prob);
  loss.clipped_high = at.advantage > 0 && moved > options.delta;
  loss.clipped_low = at.advantage < 0 && moved < -options.delta;
  if (loss.clipped_low || loss.clipped_high) return loss;
  const double factor = std::min(loss.ratio, kDppoRatioCap);
  loss.loss = -factor * at.advantage * at.log_prob;
  loss.derivative = -factor * at.advantage;
  return loss;
}

Loss Dro(const PolicyLossOptions& options, const Point& at) {
  Loss loss;
  const double log_ratio = at.clamped();
  loss.ratio = std::exp(log_ratio);
  loss.loss = -(at.advantage * at.log_prob - options.beta / 2 * log_ratio * log_ratio);
  loss.derivative = -at.advantage + (at.moves() ? options.beta * log_ratio : 0);
  return loss;
}

using TokenLoss = Loss (*)(const PolicyLossOptions&, const Point&);

// Nothing for objectives whose tokens share one ratio.
TokenLoss TokenLossOf(Objective objective) {
  switch (objective) {
    case Objective::kPolicyGradient:
      return PolicyGradient;
    case Objective::kPpoClip:
      return PpoClip;
    case Objective::kCispo:
      return Cispo;
    case Objective::kSapo:
      return Sapo;
    case Objective::kDppoTv:
      return DppoTv;
    case Objective::kDro:
      return Dro;
    case Objective::kGspo:
    case Objective::kGmpo:
      return nullptr;
  }
  return nullptr;
}

Point PointAt(const PolicyLossTerm& term, size_t t) {
  Point at{.log_prob = term.log_probs[t], .advantage = term.advantage};
  if (term.old_log_probs.empty()) return at;
  at.old_log_prob = term.old_log_probs[t];
  at.log_ratio = at.log_prob - at.old_log_prob;
  return at;
}

double CorrectionAt(const PolicyLossTerm& term, size_t t) {
  return term.correction.empty() ? 1 : term.correction[t];
}

void AddToken(const Loss& loss, double weight, PolicyLossStatistics* statistics) {
  statistics->loss += loss.loss * weight;
  statistics->ratio_sum += loss.ratio;
  statistics->clipped_low += loss.clipped_low;
  statistics->clipped_high += loss.clipped_high;
  statistics->clipped_dual += loss.clipped_dual;
}

void TokenwiseLoss(const PolicyLossOptions& options, const PolicyLossTerm& term,
                   std::span<float> dlog_probs, PolicyLossStatistics* statistics) {
  const TokenLoss token_loss = TokenLossOf(options.objective);
  for (size_t t = 0; t < term.log_probs.size(); ++t) {
    const Loss loss = token_loss(options, PointAt(term, t));
    const double weight = term.token_weight * CorrectionAt(term, t);
    dlog_probs[t] = static_cast<float>(loss.derivative * weight);
    AddToken(loss, weight, statistics);
  }
}

// What a token puts into the mean of its response.
struct BoundedLogRatio {
  double value = 0;
  bool moves = true;
  bool low = false;
  bool high = false;
};

BoundedLogRatio Bound(const PolicyLossOptions& options, const Point& at) {
  if (options.objective == Objective::kGspo) return {.value = at.log_ratio};
  if (at.advantage > 0 && at.log_ratio > options.clip_high) {
    return {.value = options.clip_high, .moves = false, .high = true};
  }
  if (at.advantage < 0 && at.log_ratio < -options.clip_low) {
    return {.value = -options.clip_low, .moves = false, .low = true};
  }
  return {.value = at.clamped(), .moves = at.moves()};
}

Loss SharedLoss(const PolicyLossOptions& options, const Point& whole) {
  if (options.objective == Objective::kGspo) return ClippedRatio(options, whole);
  const double ratio = std::exp(whole.log_ratio);
  return {.loss = -ratio * whole.advantage, .derivative = -ratio * whole.advantage, .ratio = ratio};
}

// kGspo and kGmpo.
void SequenceLoss(const PolicyLossOptions& options, const PolicyLossTerm& term,
                  std::span<float> dlog_probs, PolicyLossStatistics* statistics) {
  const double tokens = static_cast<double>(term.log_probs.size());
  double log_ratio_sum = 0;
  double weight_sum = 0;
  for (size_t t = 0; t < term.log_probs.size(); ++t) {
    log_ratio_sum += Bound(options, PointAt(term, t)).value;
    weight_sum += term.token_weight * CorrectionAt(term, t);
  }
  const Loss shared =
      SharedLoss(options, {.log_ratio = log_ratio_sum / tokens, .advantage = term.advantage});
  for (size_t t = 0; t < term.log_probs.size(); ++t) {
    const BoundedLogRatio bounded = Bound(options, PointAt(term, t));
    dlog_probs[t] =
        bounded.moves ? static_cast<float>(shared.derivative * (weight_sum / tokens)) : 0.0f;
    Loss token = shared;
    token.clipped_low |= bounded.low;
    token.clipped_high |= bounded.high;
    AddToken(token, term.token_weight * CorrectionAt(term, t), statistics);
  }
}

}  // namespace

const char* Name(Objective objective) {
  switch (objective) {
    case Objective::kPolicyGradient:
      return "policy_gradient";
    case Objective::kPpoClip:
      return "ppo_clip";
    case Objective::kGspo:
      return "gspo";
    case Objective::kCispo:
      return "cispo";
    case Objective::kGmpo:
      return "gmpo";
    case Objective::kSapo:
      return "sapo";
    case Objective::kDppoTv:
      return "dppo_tv";
    case Objective::kDro:
      return "dro";
  }
  return "?";
}

bool HasRatio(Objective objective) { return objective != Objective::kPolicyGradient; }

PolicyLossOptions DefaultOptions(Objective objective) {
  PolicyLossOptions options{.objective = objective};
  if (objective == Objective::kGspo) {
    options.clip_low = 3e-4;
    options.clip_high = 4e-4;
  } else if (objective == Objective::kCispo) {
    options.clip_low = 1;
    options.clip_high = 4;
  } else if (objective == Objective::kGmpo) {
    options.clip_low = 0.4;
    options.clip_high = 0.4;
  }
  return options;
}

void PolicyLoss(const PolicyLossOptions& options, const PolicyLossTerm& term,
                std::span<float> dlog_probs, PolicyLossStatistics* statistics) {
  const size_t tokens = term.log_probs.size();
  HALFSTEP_CHECK_EQ(dlog_probs.size(), tokens);
  if (HasRatio(options.objective) || !term.old_log_probs.empty()) {
    HALFSTEP_CHECK_EQ(term.old_log_probs.size(), tokens);
  }
  if (!term.correction.empty()) HALFSTEP_CHECK_EQ(term.correction.size(), tokens);
  if (TokenLossOf(options.objective) != nullptr) {
    TokenwiseLoss(options, term, dlog_probs, statistics);
  } else {
    SequenceLoss(options, term, dlog_probs, statistics);
  }
  statistics->tokens += static_cast<int64_t>(tokens);
}

}  // namespace halfstep
