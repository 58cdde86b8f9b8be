// SPDX-License-Identifier: Apache-2.0
// Named algorithms. A preset is a row of choices and nothing more.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "learner_server/algorithm/advantage.h"
#include "learner_server/algorithm/aggregation.h"
#include "learner_server/algorithm/correction.h"
#include "learner_server/algorithm/policy_loss.h"
#include "learner_server/algorithm/regularizer.h"

namespace halfstep {

// Where the log-probs of pi_old come from, which objectives with a ratio divide by. pi is the
// current policy, mu the behaviour policy.
enum class OldLogProbs {
  // Two policies: r = pi / mu, no second forward. The ratio holds the whole way from mu to pi, so
  // there is no correction.
  kBehaviour,
  // Three policies: pi_old is the policy at the start of the batch's training, scored by one more
  // forward; r = pi / pi_old, and the correction, if any, weighs by pi_old / mu.
  kRecompute,
  // The same for batches of older versions, where the correction is part of the objective and must
  // be there: decoupled PPO, arXiv 2505.24298.
  kDecoupled,
};

// "behaviour", "recompute", "decoupled".
const char* Name(OldLogProbs old_log_probs);

struct Algorithm {
  const char* name = "";
  AdvantageKind advantage = AdvantageKind::kGroupMean;
  PolicyLossOptions loss = {};
  Aggregation aggregation = Aggregation::kTokenMean;
  CorrectionOptions correction = {};
  OldLogProbs old_log_probs = OldLogProbs::kBehaviour;
  // N of sequence_mean_token_sum_norm; 0: max_new_tokens of the job.
  int64_t constant_length = 0;
  RegularizerOptions regularizers = {};
};

// The policy whose log-probs a term reads.
enum class PolicySource { kNone, kBehaviour, kOld, kCurrent };

// Below pi in the ratio of the objective: kNone for policy_gradient, else kBehaviour or kOld.
PolicySource RatioDenominator(const Algorithm& algorithm);

// Above mu in the correction's weights; kNone: all weights are 1. kCurrent for policy_gradient,
// which has no ratio of its own; kOld where the ratio is over pi_old; kNone where it is over mu, so
// that no ratio is counted twice.
PolicySource CorrectionNumerator(const Algorithm& algorithm);

// Whether a response has a gradient also when its advantage is 0: dro, KL in the loss, entropy.
bool TrainsOnZeroAdvantage(const Algorithm& algorithm);

// reinforce, grpo, dr_grpo, grpo_token_tis, grpo_seq_mis, gspo, pg_seq_is, pg_seq_tis, pg_seq_mis,
// dapo, cispo, rloo, reinforce_pp, icepop, decoupled_ppo. Rows whose correction stands beside a
// ratio recompute the old log-probs, the others need none but those of the behaviour policy.
std::span<const Algorithm> AlgorithmPresets();

// Nothing of that name: null.
const Algorithm* FindAlgorithmPreset(const std::string& name);

// Supervised fine-tuning is policy_gradient with every advantage 1: cross-entropy, mean over
// tokens.
const Algorithm& SupervisedAlgorithm();

}  // namespace halfstep
