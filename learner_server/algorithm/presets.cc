// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/presets.h"

#include <array>

namespace halfstep {
namespace {

constexpr PolicyLossOptions kPolicyGradient{.objective = Objective::kPolicyGradient};

constexpr std::array<Algorithm, 4> kPresets{{
    {"reinforce", AdvantageKind::kGroupMean, kPolicyGradient,
     Aggregation::kSequenceMeanTokenSumNorm},
    {"grpo",
     AdvantageKind::kGroupMeanStd,
     {Objective::kPpoClip, 0.2, 0.2},
     Aggregation::kSequenceMeanTokenMean},
    {"dr_grpo",
     AdvantageKind::kGroupMean,
     {Objective::kPpoClip, 0.2, 0.28},
     Aggregation::kSequenceMeanTokenSumNorm},
    {"rloo", AdvantageKind::kLeaveOneOut, kPolicyGradient, Aggregation::kSequenceMeanTokenSum},
}};

constexpr Algorithm kSupervised{"sft", AdvantageKind::kGroupMean, kPolicyGradient,
                                Aggregation::kTokenMean};

}  // namespace

std::span<const Algorithm> AlgorithmPresets() { return kPresets; }

const Algorithm* FindAlgorithmPreset(const std::string& name) {
  for (const Algorithm& preset : kPresets) {
    if (name == preset.name) return &preset;
  }
  return nullptr;
}

const Algorithm& SupervisedAlgorithm() { return kSupervised; }

}  // namespace halfstep
