// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/evaluation.h"

#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "learner_server/training/rollout_source.h"

namespace halfstep {
namespace {

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

std::vector<GroupTask> EvaluationTasks(const JobSettings& settings, int64_t max_positions,
                                       const PromptDataset& prompts, const EvaluationPoint& point) {
  // Ordinals of every evaluation of a run are apart, so that a late sample of one is not taken for
  // the next, and each draws its own noise.
  const uint64_t first =
      static_cast<uint64_t>(point.step) * 2 * static_cast<uint64_t>(prompts.size());
  std::vector<GroupTask> tasks;
  for (const Decoding decoding : {Decoding::kSampled, Decoding::kGreedy}) {
    for (int64_t i = 0; i < prompts.size(); ++i) {
      GroupTask task = MakeTask(settings, max_positions, prompts.row(i), decoding);
      task.assignment.key = {Purpose::kEval, first + tasks.size()};
      task.assignment.version = point.version;
      tasks.push_back(std::move(task));
    }
  }
  return tasks;
}

EvaluationResult SummarizeEvaluation(std::span<const Trajectory> trajectories, int64_t samples) {
  EvaluationResult result;
  result.samples = samples;
  result.prompts = static_cast<int64_t>(trajectories.size()) / (samples + 1);
  const size_t sampled_end = static_cast<size_t>(result.prompts * samples);
  double sampled = 0, greedy = 0;
  for (size_t i = 0; i < trajectories.size(); ++i) {
    const Trajectory& trajectory = trajectories[i];
    result.tokens += static_cast<int64_t>(trajectory.sample.tokens.size());
    if (trajectory.reward.outcome != RewardOutcome::kScore) continue;
    (i < sampled_end ? sampled : greedy) += trajectory.reward.score;
  }
  result.accuracy = sampled / static_cast<double>(result.prompts * result.samples);
  result.greedy = greedy / static_cast<double>(result.prompts);
  return result;
}

absl::StatusOr<EvaluationResult> Evaluate(const JobSettings& settings, int64_t max_positions,
                                          const PromptDataset& prompts,
                                          const EvaluationPoint& point, RolloutClient* client,
                                          std::vector<Trajectory>* sampled) {
  const absl::Time start = absl::Now();
  std::vector<GroupTask> tasks = EvaluationTasks(settings, max_positions, prompts, point);
  std::vector<GroupKey> keys;
  for (const GroupTask& task : tasks) keys.push_back(task.assignment.key);
  client->Assign(std::move(tasks));
  HALFSTEP_ASSIGN_OR_RETURN(CollectedGroups collected, client->Collect(keys));
  EvaluationResult result =
      SummarizeEvaluation(collected.trajectories, settings.evaluation_samples);
  *sampled = std::move(collected.trajectories);
  sampled->resize(static_cast<size_t>(result.prompts * result.samples));
  result.time = absl::Now() - start;
  return result;
}

}  // namespace halfstep
