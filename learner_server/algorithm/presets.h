// SPDX-License-Identifier: Apache-2.0
// Named algorithms. A preset is a row of choices and nothing more.
#pragma once

#include <span>
#include <string>

#include "learner_server/algorithm/advantage.h"
#include "learner_server/algorithm/aggregation.h"
#include "learner_server/algorithm/policy_loss.h"

namespace halfstep {

struct Algorithm {
  const char* name = "";
  AdvantageKind advantage = AdvantageKind::kGroupMean;
  PolicyLossOptions loss;
  Aggregation aggregation = Aggregation::kTokenMean;
};

// reinforce, grpo, dr_grpo, rloo.
std::span<const Algorithm> AlgorithmPresets();

// Nothing of that name: null.
const Algorithm* FindAlgorithmPreset(const std::string& name);

// Supervised fine-tuning is policy_gradient with every advantage 1: cross-entropy, mean over
// tokens.
const Algorithm& SupervisedAlgorithm();

}  // namespace halfstep
