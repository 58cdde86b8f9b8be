// SPDX-License-Identifier: Apache-2.0
// Dynamic sampling, arXiv 2503.14476: prompts whose responses all have the same score teach
// nothing, so a batch leaves them out or takes further ones until it has enough others.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/trajectory/trajectory.h"

namespace halfstep {

// A batch that resamples ends once it has had this many times batch.prompts groups.
inline constexpr int64_t kMostGroupsPerPrompt = 10;

// Nothing for a response that could not be scored.
std::optional<double> ScoreOf(const Trajectory& trajectory);

// For each group of `group_size` consecutive trajectories, whether its responses differ in their
// scores. Those are the verifier's: a penalty of length, or of KL, makes no group worth learning
// from, as in the paper, whose condition is on correctness.
std::vector<bool> MixedGroups(std::span<const Trajectory> trajectories, int64_t group_size);

// FAILED_PRECONDITION, reason NO_MIXED_GROUPS: how many of the groups were all equal, at which
// scores, and how many groups a batch needs that are not.
absl::Status NoMixedGroups(std::span<const Trajectory> trajectories, int64_t group_size,
                           int64_t needed);

}  // namespace halfstep
