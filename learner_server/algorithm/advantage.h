// SPDX-License-Identifier: Apache-2.0
// Advantages: how much better a response was than what it is compared with.
#pragma once

#include <optional>
#include <span>
#include <vector>

namespace halfstep {

enum class AdvantageKind {
  // Compared with the group:
  kGroupMean,     // R - mean: Dr. GRPO, arXiv 2503.20783
  kGroupMeanStd,  // (R - mean) / (std + 1e-6), std with n - 1: GRPO, arXiv 2402.03300
  kLeaveOneOut,   // R - mean of the others: RLOO, arXiv 2402.14740
  // Compared with the batch, REINFORCE++, arXiv 2501.03262. Mean and variance (with n - 1) are over
  // responses, each counted once whatever its length.
  kBatchWhiten,           // (R - mean) / sqrt(variance + 1e-8)
  kGroupMeanBatchWhiten,  // D / sqrt(variance of D + 1e-8), D = R - mean of the group
  // Compared with the greedy response to the same prompt:
  kGreedyBaseline,  // R - R(greedy): ReMax, arXiv 2310.10505
};

// "group_mean", "group_mean_std", "leave_one_out", "batch_whiten", "group_mean_batch_whiten",
// "greedy_baseline".
const char* Name(AdvantageKind kind);

// Whether a response is compared with others of its group, so that a group of one says nothing.
bool NeedsGroup(AdvantageKind kind);

// Scores of the responses to one prompt; nothing stands for a response that could not be scored.
struct ScoredGroup {
  std::span<const std::optional<double>> scores;
  std::optional<double> greedy_score = {};  // of the greedy response; read by kGreedyBaseline alone
};

// Advantages of every response of `groups`, which are all of a step's, in their order. A response
// without a score enters no mean and gets 0. Exact zeros come from: a group whose scores are all
// equal or that has fewer than two (kinds that need a group; the latter enters no variance of the
// batch either); a batch whose scores are all equal or that has fewer than two (kBatchWhiten);
// a group without greedy score, and scores equal to it (kGreedyBaseline).
std::vector<double> BatchAdvantages(AdvantageKind kind, std::span<const ScoredGroup> groups);

// Whether the scores of a group are all equal, or fewer than two: what DAPO (arXiv 2503.14476)
// calls a prompt without effective gradient.
bool HasZeroVariance(std::span<const std::optional<double>> scores);

}  // namespace halfstep
