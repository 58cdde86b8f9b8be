// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/dynamic_sampling.h"

#include <algorithm>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "learner_server/algorithm/advantage.h"

namespace halfstep {
namespace {

constexpr size_t kShownScores = 4;

using Scores = std::vector<std::optional<double>>;

std::vector<Scores> ScoresByGroup(std::span<const Trajectory> trajectories, int64_t group_size) {
  std::vector<Scores> groups(trajectories.size() / static_cast<size_t>(group_size));
  for (size_t i = 0; i < trajectories.size(); ++i) {
    groups[i / static_cast<size_t>(group_size)].push_back(ScoreOf(trajectories[i]));
  }
  return groups;
}

}  // namespace

std::optional<double> ScoreOf(const Trajectory& trajectory) {
  if (trajectory.reward.outcome != RewardOutcome::kScore) return std::nullopt;
  return trajectory.reward.score;
}

std::vector<bool> MixedGroups(std::span<const Trajectory> trajectories, int64_t group_size) {
  std::vector<bool> mixed;
  for (const Scores& scores : ScoresByGroup(trajectories, group_size)) {
    mixed.push_back(!HasZeroVariance(scores));
  }
  return mixed;
}

absl::Status NoMixedGroups(std::span<const Trajectory> trajectories, int64_t group_size,
                           int64_t needed) {
  const std::vector<Scores> groups = ScoresByGroup(trajectories, group_size);
  std::map<double, int64_t> equal_at;
  int64_t equal = 0;
  for (const Scores& scores : groups) {
    if (!HasZeroVariance(scores)) continue;
    ++equal;
    const auto scored = std::find_if(scores.begin(), scores.end(),
                                     [](const auto& score) { return score.has_value(); });
    if (scored != scores.end()) ++equal_at[**scored];
  }
  std::string where;
  size_t shown = 0;
  for (const auto& [score, count] : equal_at) {
    if (++shown > kShownScores) {
      absl::StrAppend(&where, " and ", equal_at.size() - kShownScores, " other scores");
      break;
    }
    absl::StrAppend(&where, where.empty() ? "" : ", ", count, " at ", score);
  }
  return Error(
      absl::StatusCode::kFailedPrecondition, "NO_MIXED_GROUPS",
      absl::StrCat("dynamic sampling gives up: of ", groups.size(), " groups, ", equal,
                   " have responses of all the same score",
                   where.empty() ? "" : absl::StrCat(" (", where, ")"), ", and a batch needs ",
                   needed,
                   " groups with different ones; take prompts that are neither too hard "
                   "nor too easy, more samples per prompt, or zero_variance drop or keep"));
}

}  // namespace halfstep
