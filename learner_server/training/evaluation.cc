// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/evaluation.h"

#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "learner_server/training/rollout_source.h"

namespace halfstep {
namespace {

// Each prompt is two groups: its samples, and its greedy response.
enum class Decoding { kSampled, kGreedy };

GroupTask MakeTask(const JobSettings& settings, int64_t max_positions, const DatasetRow& row,
                   Decoding decoding) {
  GroupTask task;
  task.answer = row.target;
  task.assignment.prompt = row.prompt;
  task.assignment.seed = settings.seed;
  task.assignment.sampling =
      SamplingFor(settings.sampling, static_cast<int64_t>(row.prompt.size()), max_positions);
  if (decoding == Decoding::kGreedy) {
    task.assignment.samples = 1;
    task.assignment.sampling.temperature = 0;
  } else {
    task.assignment.samples = static_cast<uint32_t>(settings.evaluation_samples);
  }
  return task;
}

}  // namespace

absl::StatusOr<EvaluationResult> Evaluate(const JobSettings& settings, int64_t max_positions,
                                          const PromptDataset& prompts,
                                          const EvaluationPoint& point, RolloutClient* client) {
  const absl::Time start = absl::Now();
  // Ordinals of every evaluation of a run are apart, so that a late sample of one is not taken for
  // the next, and each draws its own noise.
  const uint64_t groups = 2 * static_cast<uint64_t>(prompts.size());
  const uint64_t first = static_cast<uint64_t>(point.step) * groups;
  std::vector<GroupTask> tasks;
  std::vector<GroupKey> keys;
  for (const Decoding decoding : {Decoding::kSampled, Decoding::kGreedy}) {
    for (int64_t i = 0; i < prompts.size(); ++i) {
      tasks.push_back(MakeTask(settings, max_positions, prompts.row(i), decoding));
      keys.push_back({Purpose::kEval, first + keys.size()});
      tasks.back().assignment.key = keys.back();
      tasks.back().assignment.version = point.version;
    }
  }
  client->Assign(std::move(tasks));
  HALFSTEP_ASSIGN_OR_RETURN(const CollectedGroups collected, client->Collect(keys));

  EvaluationResult result;
  result.prompts = prompts.size();
  result.samples = settings.evaluation_samples;
  double sampled = 0, greedy = 0;
  for (const Trajectory& trajectory : collected.trajectories) {
    result.tokens += static_cast<int64_t>(trajectory.sample.tokens.size());
    if (trajectory.reward.outcome != RewardOutcome::kScore) continue;
    const bool is_greedy = trajectory.key.ordinal - first >= groups / 2;
    (is_greedy ? greedy : sampled) += trajectory.reward.score;
  }
  result.accuracy = sampled / static_cast<double>(result.prompts * result.samples);
  result.greedy = greedy / static_cast<double>(result.prompts);
  result.time = absl::Now() - start;
  return result;
}

}  // namespace halfstep
