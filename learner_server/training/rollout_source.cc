// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/rollout_source.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "kernels/check.h"
#include "learner_server/data/permutation.h"
#include "learner_server/training/dynamic_sampling.h"

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

std::span<const std::optional<double>> GroupOf(const Scores& scores, size_t group,
                                               size_t group_size) {
  return std::span(scores).subspan(group * group_size, group_size);
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
    statistics->zero_std_groups += HasZeroVariance(
        GroupOf(scores, static_cast<size_t>(group), static_cast<size_t>(group_size)));
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

TrainSequence MakeSequence(Trajectory trajectory) {
  TrainSequence sequence;
  sequence.prompt_tokens = static_cast<int64_t>(trajectory.prompt.size());
  sequence.tokens = std::move(trajectory.prompt);
  sequence.tokens.insert(sequence.tokens.end(), trajectory.sample.tokens.begin(),
                         trajectory.sample.tokens.end());
  sequence.behaviour = std::move(trajectory.sample.log_probs);
  sequence.rollout_id = std::move(trajectory.rollout_id);
  sequence.versions = std::move(trajectory.sample.versions);
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

// The groups that enter the loss.
std::vector<bool> KeptGroups(const JobSettings& settings,
                             std::span<const Trajectory> trajectories) {
  if (settings.train_step.algorithm.regularizers.zero_variance == ZeroVarianceGroups::kKeep) {
    return std::vector<bool>(trajectories.size() / static_cast<size_t>(settings.samples), true);
  }
  return MixedGroups(trajectories, settings.samples);
}

// Scores of all responses, and which groups enter the loss.
struct ScoredBatch {
  size_t group_size = 1;
  Scores scores = {};
  std::vector<bool> kept = {};
};

void CountDropped(const ScoredBatch& scored_batch, BatchStatistics* statistics) {
  for (size_t group = 0; group < scored_batch.kept.size(); ++group) {
    if (scored_batch.kept[group]) continue;
    const auto of_group = GroupOf(scored_batch.scores, group, scored_batch.group_size);
    const auto scored = std::count_if(of_group.begin(), of_group.end(),
                                      [](const auto& score) { return score.has_value(); });
    ++statistics->groups_dropped;
    statistics->samples_trained -= scored;
    if (scored > 0) statistics->samples_dropped["zero_variance"] += scored;
  }
}

// Which update a group belongs to. Those that are replaced leave no gap.
std::vector<size_t> UpdatesOf(const JobSettings& settings, const std::vector<bool>& kept) {
  const bool replaced =
      settings.train_step.algorithm.regularizers.zero_variance == ZeroVarianceGroups::kResample;
  const auto places = static_cast<size_t>(replaced ? std::count(kept.begin(), kept.end(), true)
                                                   : static_cast<int64_t>(kept.size()));
  const size_t per_update = std::max<size_t>(1, places / static_cast<size_t>(settings.updates));
  std::vector<size_t> updates;
  size_t place = 0;
  for (const bool is_kept : kept) {
    updates.push_back(place / per_update);
    place += is_kept || !replaced;
  }
  return updates;
}

// A sequence of the batch, and where it is from.
struct Placed {
  size_t at = 0;  // among the batch's trajectories
  TrainSequence* sequence = nullptr;
};

// Takes the penalties from the scores and gives each sequence its advantage.
void SetAdvantages(const JobSettings& settings, std::span<const Trajectory> greedy_responses,
                   std::span<const Placed> placed, ScoredBatch* scored_batch) {
  const Algorithm& algorithm = settings.train_step.algorithm;
  const RegularizerOptions& regularizers = algorithm.regularizers;
  const KlOptions& kl = regularizers.kl;
  for (const Placed& one : placed) {
    double& score = *scored_batch->scores[one.at];
    score += OverlongPenalty(regularizers.overlong, one.sequence->response_tokens());
    if (kl.coefficient > 0 && kl.place == KlPlace::kReward) {
      score -= KlPenalty(kl, one.sequence->behaviour, one.sequence->reference);
    }
  }
  const size_t group_size = scored_batch->group_size;
  const std::vector<bool>& kept = scored_batch->kept;
  std::vector<ScoredGroup> scored_groups;
  std::vector<size_t> first(kept.size());  // of a group, among the advantages
  for (size_t group = 0; group < kept.size(); ++group) {
    if (!kept[group]) continue;
    first[group] = scored_groups.size() * group_size;
    ScoredGroup& scored = scored_groups.emplace_back();
    scored.scores = GroupOf(scored_batch->scores, group, group_size);
    if (greedy_responses.empty()) continue;
    const Trajectory& greedy = greedy_responses[group];
    scored.greedy_score = ScoreOf(greedy);
    if (!scored.greedy_score) continue;
    *scored.greedy_score +=
        OverlongPenalty(regularizers.overlong, static_cast<int64_t>(greedy.sample.tokens.size()));
  }
  const std::vector<double> advantages = BatchAdvantages(algorithm.advantage, scored_groups);
  for (const Placed& one : placed) {
    one.sequence->advantage = advantages[first[one.at / group_size] + one.at % group_size];
  }
}

bool HasGreedyBaseline(const JobSettings& settings) {
  return settings.train_step.algorithm.advantage == AdvantageKind::kGreedyBaseline;
}

// Groups of evaluation are not trained on, nor are greedy responses to prompts of training. Their
// numbers are beyond those of any evaluation.
GroupKey GreedyKey(uint64_t group) {
  constexpr uint64_t kFirst = uint64_t{1} << 62;
  return {Purpose::kEval, kFirst + group};
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
                                          GeneratedGroups groups,
                                          const ReferenceScorer& reference) {
  TrainBatch batch;
  ScoredBatch scored_batch{.group_size = static_cast<size_t>(settings.samples)};
  Scores& scores = scored_batch.scores;
  std::vector<Trajectory>& trajectories = groups.trajectories;
  for (const Trajectory& trajectory : trajectories) {
    Count(trajectory, &batch.statistics);
    scores.push_back(ScoreOf(trajectory));
  }
  HALFSTEP_RETURN_IF_ERROR(CheckOutcomes(batch.statistics));
  const std::vector<bool>& kept = scored_batch.kept = KeptGroups(settings, trajectories);
  if (settings.permute_rewards) PermuteScores(settings, step, &scores);
  MeasureScores(scores, settings.samples, &batch.statistics);
  CountDropped(scored_batch, &batch.statistics);

  if (settings.save_samples) {
    for (const Trajectory& trajectory : trajectories) {
      batch.samples.push_back(RecordOf(trajectory));
    }
  }
  batch.updates.resize(static_cast<size_t>(settings.updates));
  const std::vector<size_t> updates = UpdatesOf(settings, kept);
  std::vector<size_t> taken;
  for (size_t at = 0; at < scores.size(); ++at) {
    const size_t group = at / scored_batch.group_size;
    if (!scores[at] || !kept[group]) continue;
    batch.updates[updates[group]].push_back(MakeSequence(std::move(trajectories[at])));
    taken.push_back(at);
  }
  // In the order they were taken, since updates ascend.
  std::vector<Placed> placed;
  for (std::vector<TrainSequence>& update : batch.updates) {
    for (TrainSequence& sequence : update) placed.push_back({taken[placed.size()], &sequence});
  }
  if (reference != nullptr) {
    const absl::Time start = absl::Now();
    for (std::vector<TrainSequence>& update : batch.updates) {
      HALFSTEP_RETURN_IF_ERROR(reference(update));
    }
    batch.reference_time = absl::Now() - start;
  }
  SetAdvantages(settings, groups.greedy, placed, &scored_batch);
  if (settings.save_samples) {
    for (const Placed& one : placed) batch.samples[one.at].advantage = one.sequence->advantage;
  }
  batch.rows_consumed = static_cast<int64_t>(kept.size());
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

// What one batch has come to so far.
struct RolloutSource::Collected {
  GeneratedGroups groups;
  absl::Duration wait_time;
  absl::Duration score_time;
};

absl::StatusOr<TrainBatch> RolloutSource::Next(int64_t step, const RunProgress& progress) {
  if (dispatched_ < 0) dispatched_ = progress.step;
  while (dispatched_ < std::min(step + settings_.lag, settings_.steps)) {
    ++dispatched_;
    Dispatch(RowsOf(dispatched_, progress),
             GeneratingVersion(progress, dispatched_, settings_.lag));
  }
  const Rows rows = RowsOf(step, progress);
  Collected collected;
  HALFSTEP_RETURN_IF_ERROR(Collect(rows, &collected));
  if (settings_.train_step.algorithm.regularizers.zero_variance == ZeroVarianceGroups::kResample) {
    HALFSTEP_RETURN_IF_ERROR(
        Resample(rows, GeneratingVersion(progress, step, settings_.lag), &collected));
  }
  HALFSTEP_ASSIGN_OR_RETURN(
      TrainBatch batch, MakeTrainBatch(settings_, step, std::move(collected.groups), reference_));
  batch.wait_time = collected.wait_time;
  batch.score_time = collected.score_time;
  for (SampleRecord& sample : batch.samples) sample.row = rows_.at(sample.group);
  for (int64_t i = 0; i < batch.rows_consumed; ++i) {
    rows_.erase(rows.first + static_cast<uint64_t>(i));
  }
  return batch;
}

RolloutSource::Rows RolloutSource::RowsOf(int64_t step, const RunProgress& progress) const {
  const auto between = static_cast<uint64_t>((step - 1 - progress.step) * settings_.prompts);
  return {progress.cursor + between, settings_.prompts};
}

void RolloutSource::Dispatch(const Rows& rows, uint64_t version) {
  std::vector<GroupTask> tasks;
  for (uint64_t group = rows.first; group < rows.first + static_cast<uint64_t>(rows.count);
       ++group) {
    const DatasetRow& row = dataset_->Shuffled(settings_.seed, group);
    GroupTask& task =
        tasks.emplace_back(TrainTask(settings_, max_positions_, {Purpose::kTrain, group}, row));
    task.assignment.version = version;
    rows_[group] = row.line;
    if (!HasGreedyBaseline(settings_)) continue;
    GroupTask greedy = task;
    greedy.assignment.key = GreedyKey(group);
    greedy.assignment.samples = 1;
    greedy.assignment.sampling.temperature = 0;
    tasks.push_back(std::move(greedy));
  }
  client_->Assign(std::move(tasks));
}

absl::Status RolloutSource::Collect(const Rows& rows, Collected* collected) {
  std::vector<GroupKey> keys, greedy;
  for (int64_t i = 0; i < rows.count; ++i) {
    const uint64_t group = rows.first + static_cast<uint64_t>(i);
    keys.push_back({Purpose::kTrain, group});
    if (HasGreedyBaseline(settings_)) greedy.push_back(GreedyKey(group));
  }
  keys.insert(keys.end(), greedy.begin(), greedy.end());
  HALFSTEP_ASSIGN_OR_RETURN(CollectedGroups came, client_->Collect(keys));
  GeneratedGroups& groups = collected->groups;
  for (Trajectory& trajectory : came.trajectories) {
    (trajectory.key.purpose == Purpose::kTrain ? groups.trajectories : groups.greedy)
        .push_back(std::move(trajectory));
  }
  collected->wait_time += came.wait_time;
  collected->score_time += came.score_time;
  return absl::OkStatus();
}

absl::Status RolloutSource::Resample(Rows rows, uint64_t version, Collected* collected) {
  const std::vector<Trajectory>& trajectories = collected->groups.trajectories;
  const int64_t most = kMostGroupsPerPrompt * settings_.prompts;
  for (int64_t taken = rows.count;; taken += rows.count) {
    const std::vector<bool> mixed = MixedGroups(trajectories, settings_.samples);
    const int64_t missing = settings_.prompts - std::count(mixed.begin(), mixed.end(), true);
    if (missing == 0) return absl::OkStatus();
    if (taken + missing > most) {
      return NoMixedGroups(trajectories, settings_.samples, settings_.prompts);
    }
    // No more than are missing: what a batch takes depends on the seed and the weights alone, and
    // no group with different scores is thrown away.
    rows = {rows.first + static_cast<uint64_t>(rows.count), missing};
    Dispatch(rows, version);
    HALFSTEP_RETURN_IF_ERROR(Collect(rows, collected));
  }
}

}  // namespace halfstep
