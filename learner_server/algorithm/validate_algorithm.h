// SPDX-License-Identifier: Apache-2.0
// Which rows of choices can be trained at all.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "learner_server/algorithm/presets.h"

namespace halfstep {

// What the job gives its algorithm.
struct AlgorithmInputs {
  int64_t samples_per_prompt = 1;
  bool behaviour_log_probs = true;   // rollouts send log mu of every token
  bool greedy_response = false;      // and a greedy response to every prompt
  bool reference_log_probs = false;  // a reference policy scores every response
  bool behaviour_is_old = false;     // mu = pi_old bit for bit: profile bitwise at lag 0
  bool runs_ahead = false;           // later batches are generated before this one is complete
};

// OK, or INVALID_ARGUMENT naming the choice and the way out, with one of the reasons
//   GROUP_TOO_SMALL                an advantage or resampling that compares within a group of one
//   RESAMPLING_RUNS_AHEAD          resampling, where later batches have their prompts already
//   GREEDY_RESPONSE_MISSING        greedy_baseline without greedy responses
//   BEHAVIOUR_LOG_PROBS_MISSING    a correction, or a ratio over mu, without log mu
//   RATIO_COUNTED_TWICE            a correction beside a ratio over mu, unless mu = pi_old
//   DECOUPLED_WITHOUT_CORRECTION   old log-probs decoupled, nothing from mu to pi_old
//   OLD_LOG_PROBS_UNUSED           old log-probs decoupled, objective without ratio
//   CLIP_OUT_OF_RANGE              bounds of the objective
//   DUAL_CLIP_OUT_OF_RANGE         c not above 1, or another objective than ppo_clip
//   OBJECTIVE_PARAMETER_OUT_OF_RANGE   tau, delta, beta
//   CORRECTION_OUT_OF_RANGE        bounds of the correction
//   CORRECTION_CANNOT_NORMALIZE    of no correction, or of weights by the current policy, which are
//                                  not all known before the first backward
//   REFERENCE_MISSING              KL without a reference policy
//   COEFFICIENT_OUT_OF_RANGE       of KL or entropy
//   OVERLONG_OUT_OF_RANGE          lengths of the overlong shaping
absl::Status ValidateAlgorithm(const Algorithm& algorithm, const AlgorithmInputs& inputs);

}  // namespace halfstep
