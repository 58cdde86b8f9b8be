// SPDX-License-Identifier: Apache-2.0
// Advantages: how much better a response was than its group.
#pragma once

#include <optional>
#include <span>
#include <vector>

namespace halfstep {

enum class AdvantageKind {
  kGroupMean,     // R - mean: Dr. GRPO, arXiv 2503.20783
  kGroupMeanStd,  // (R - mean) / (std + 1e-6), std with n - 1: GRPO, arXiv 2402.03300
  kLeaveOneOut,   // R - mean of the others: RLOO, arXiv 2402.14740
};

// "group_mean", "group_mean_std", "leave_one_out".
const char* Name(AdvantageKind kind);

// Advantages of one group from its scores; nothing stands for a response that could not be scored,
// which takes no part in the baseline and gets 0. A group whose scores are all equal, or that has
// fewer than two, gives exact zeros.
std::vector<double> GroupAdvantages(AdvantageKind kind,
                                    std::span<const std::optional<double>> scores);

}  // namespace halfstep
