// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/rollout_source.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "kernels/check.h"
#include "learner_server/data/permutation.h"

namespace halfstep {
namespace {

using Scores = std::vector<std::optional<double>>;

constexpr double kMaxMissingShare = 0.5;

// The control experiment: every scored response gets the score of a random one of its batch.
void PermuteScores(const JobSettings& settings, int64_t step, Scores* scores) {
  std::vector<size_t> scored;
  for (size_t i = 0; i < scores->size(); ++i) {
    if ((*scores)[i]) scored.push_back(i);
  }
  const std::vector<uint32_t> order =
      Permutation(static_cast<uint32_t>(scored.size()),
                  {settings.seed, PermutationUse::kRewards, static_cast<uint64_t>(step)});
  const Scores original = *scores;
  for (size_t i = 0; i < scored.size(); ++i) (*scores)[scored[i]] = original[scored[order[i]]];
}

void MeasureScores(const Scores& scores, int64_t group_size, BatchStatistics* statistics) {
  double sum = 0, squares = 0;
  int64_t scored = 0;
  for (const std::optional<double>& score : scores) {
    if (!score) continue;
    sum += *score;
    ++scored;
  }
  if (scored > 0) statistics->reward_mean = sum / static_cast<double>(scored);
  for (const std::optional<double>& score : scores) {
    if (score) squares += std::pow(*score - statistics->reward_mean, 2);
  }
  if (scored > 0) statistics->reward_std = std::sqrt(squares / static_cast<double>(scored));
  statistics->groups = static_cast<int64_t>(scores.size()) / group_size;
  for (int64_t group = 0; group < statistics->groups; ++group) {
    std::optional<double> first;
    bool all_equal = true;
    for (int64_t i = 0; i < group_size; ++i) {
      const std::optional<double>& score = scores[group * group_size + i];
      if (!score) continue;
      if (!first) first = score;
      all_equal = all_equal && *score == *first;
    }
    statistics->zero_std_groups += all_equal;
  }
}

void Count(const Trajectory& trajectory, BatchStatistics* statistics) {
  const int64_t length = static_cast<int64_t>(trajectory.sample.tokens.size());
  ++statistics->samples;
  statistics->tokens_generated += length;
  statistics->lengths.push_back(length);
  statistics->truncated += trajectory.sample.finish_reason == FinishReason::kLength;
  ++statistics->samples_by_rollout[trajectory.rollout_id];
  ++statistics->reward_outcomes[Name(trajectory.reward.outcome)];
  if (trajectory.reward.outcome == RewardOutcome::kScore) {
    ++statistics->samples_trained;
  } else {
    ++statistics->samples_dropped["unscored"];
  }
}

TrainSequence MakeSequence(Trajectory trajectory, double advantage) {
  TrainSequence sequence;
  sequence.prompt_tokens = static_cast<int64_t>(trajectory.prompt.size());
  sequence.tokens = std::move(trajectory.prompt);
  sequence.tokens.insert(sequence.tokens.end(), trajectory.sample.tokens.begin(),
                         trajectory.sample.tokens.end());
  sequence.behaviour = std::move(trajectory.sample.log_probs);
  sequence.versions = std::move(trajectory.sample.versions);
  sequence.advantage = advantage;
  return sequence;
}

absl::Status CheckOutcomes(const BatchStatistics& statistics) {
  const int64_t missing = statistics.samples - statistics.samples_trained;
  if (static_cast<double>(missing) <= kMaxMissingShare * static_cast<double>(statistics.samples)) {
    return absl::OkStatus();
  }
  std::string outcomes;
  for (const auto& [outcome, count] : statistics.reward_outcomes) {
    absl::StrAppend(&outcomes, outcomes.empty() ? "" : ", ", count, " ", outcome);
  }
  return Error(absl::StatusCode::kFailedPrecondition, "REWARDS_MISSING",
               absl::StrCat("most responses of the batch have no score (", outcomes,
                            "); check the answers of the data and the reward's settings"));
}

}  // namespace

uint64_t GeneratingVersion(const RunProgress& progress, int64_t step, int64_t lag) {
  const int64_t after = std::max<int64_t>(0, step - 1 - lag);
  HALFSTEP_CHECK_LE(after, progress.step);
  return progress.version_after[static_cast<size_t>(after)];
}

SamplingParams SamplingFor(const SamplingParams& sampling, int64_t prompt_tokens,
                           int64_t max_positions) {
  SamplingParams params = sampling;
  params.max_new_tokens = static_cast<int32_t>(
      std::min<int64_t>(sampling.max_new_tokens, max_positions - prompt_tokens));
  return params;
}

absl::StatusOr<TrainBatch> MakeTrainBatch(const JobSettings& settings, int64_t step,
                                          std::vector<Trajectory> trajectories) {
  TrainBatch batch;
  Scores scores;
  for (const Trajectory& trajectory : trajectories) {
    Count(trajectory, &batch.statistics);
    const bool scored = trajectory.reward.outcome == RewardOutcome::kScore;
    scores.push_back(scored ? std::optional<double>(trajectory.reward.score) : std::nullopt);
  }
  HALFSTEP_RETURN_IF_ERROR(CheckOutcomes(batch.statistics));
  if (settings.permute_rewards) PermuteScores(settings, step, &scores);
  MeasureScores(scores, settings.samples, &batch.statistics);

  if (settings.save_samples) {
    for (const Trajectory& trajectory : trajectories) {
      batch.samples.push_back(RecordOf(trajectory));
    }
  }
  const size_t group_size = static_cast<size_t>(settings.samples);
  const size_t groups = scores.size() / group_size;
  const size_t groups_per_update = groups / static_cast<size_t>(settings.updates);
  batch.updates.resize(static_cast<size_t>(settings.updates));
  std::vector<ScoredGroup> scored_groups;
  for (size_t group = 0; group < groups; ++group) {
    scored_groups.push_back({std::span(scores).subspan(group * group_size, group_size)});
  }
  const std::vector<double> advantages =
      BatchAdvantages(settings.train_step.algorithm.advantage, scored_groups);
  for (size_t at = 0; at < groups * group_size; ++at) {
    if (!scores[at]) continue;
    if (settings.save_samples) batch.samples[at].advantage = advantages[at];
    batch.updates[at / group_size / groups_per_update].push_back(
        MakeSequence(std::move(trajectories[at]), advantages[at]));
  }
  batch.rows_consumed = static_cast<int64_t>(groups);
  return batch;
}

GroupTask TrainTask(const JobSettings& settings, int64_t max_positions, const GroupKey& key,
                    const DatasetRow& row) {
  GroupTask task;
  task.assignment.key = key;
  task.assignment.prompt = row.prompt;
  task.assignment.samples = static_cast<uint32_t>(settings.samples);
  task.assignment.sampling =
      SamplingFor(settings.sampling, static_cast<int64_t>(row.prompt.size()), max_positions);
  task.assignment.seed = settings.seed;
  task.answer = row.target;
  return task;
}

absl::StatusOr<TrainBatch> RolloutSource::Next(int64_t step, const RunProgress& progress) {
  if (dispatched_ < 0) dispatched_ = progress.step;
  while (dispatched_ < std::min(step + settings_.lag, settings_.steps)) {
    Dispatch(++dispatched_, progress);
  }
  HALFSTEP_ASSIGN_OR_RETURN(CollectedGroups collected, client_->Collect(KeysOf(step)));
  HALFSTEP_ASSIGN_OR_RETURN(TrainBatch batch,
                            MakeTrainBatch(settings_, step, std::move(collected.trajectories)));
  batch.wait_time = collected.wait_time;
  batch.score_time = collected.score_time;
  for (SampleRecord& sample : batch.samples) sample.row = rows_.at(sample.group);
  for (const GroupKey& key : KeysOf(step)) rows_.erase(key.ordinal);
  return batch;
}

std::vector<GroupKey> RolloutSource::KeysOf(int64_t step) const {
  std::vector<GroupKey> keys;
  for (int64_t i = 0; i < settings_.prompts; ++i) {
    keys.push_back({Purpose::kTrain, static_cast<uint64_t>((step - 1) * settings_.prompts + i)});
  }
  return keys;
}

void RolloutSource::Dispatch(int64_t step, const RunProgress& progress) {
  const uint64_t version = GeneratingVersion(progress, step, settings_.lag);
  const uint64_t first_row =
      progress.cursor + static_cast<uint64_t>((step - 1 - progress.step) * settings_.prompts);
  std::vector<GroupTask> tasks;
  for (const GroupKey& key : KeysOf(step)) {
    const DatasetRow& row = dataset_->Shuffled(settings_.seed, first_row + tasks.size());
    GroupTask& task = tasks.emplace_back(TrainTask(settings_, max_positions_, key, row));
    task.assignment.version = version;
    rows_[key.ordinal] = row.line;
  }
  client_->Assign(std::move(tasks));
}

}  // namespace halfstep
