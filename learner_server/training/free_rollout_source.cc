// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/free_rollout_source.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/time/clock.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "kernels/check.h"
#include "learner_server/training/rollout_source.h"
#include "learner_server/training/train_checkpoint.h"

namespace halfstep {

absl::StatusOr<TrainBatch> MakeFreeBatch(const JobSettings& settings, const RunProgress& progress,
                                         ReplayBatch batch) {
  OpenGroups groups{progress.cursor, progress.open_groups};
  for (size_t i = 0; i < batch.trajectories.size(); ++i) {
    const uint64_t ordinal = batch.trajectories[i].key.ordinal;
    if (i == 0 || ordinal != batch.trajectories[i - 1].key.ordinal) groups.Train(ordinal);
  }
  HALFSTEP_ASSIGN_OR_RETURN(TrainBatch made,
                            MakeTrainBatch(settings, batch.step, {std::move(batch.trajectories)}));
  made.open_groups = std::move(groups.open);
  made.statistics.samples_stale = batch.stale_samples;
  made.statistics.tokens_generated += batch.stale_tokens;
  if (batch.stale_samples > 0) made.statistics.samples_dropped["stale"] = batch.stale_samples;
  return made;
}

absl::StatusOr<TrainBatch> FreeRolloutSource::Next(int64_t step, const RunProgress& progress) {
  const uint64_t version = progress.policy_version;
  if (!begun_) Begin(progress);
  AssignAhead(version);
  DropStale(version);
  const absl::Time start = absl::Now();
  absl::Duration wait_time;
  while (!BatchIsComplete()) {
    HALFSTEP_ASSIGN_OR_RETURN(CollectedGroups arrived, client_->CollectArrived(start));
    wait_time += arrived.wait_time;
    Add(std::move(arrived.trajectories));
    DropStale(version);
  }
  std::vector<uint64_t> ordinals;
  ReplayBatch logged{.step = step,
                     .version = version,
                     .master_digest = MasterDigest(*state_),
                     .stale_samples = std::exchange(stale_samples_, 0),
                     .stale_tokens = std::exchange(stale_tokens_, 0),
                     .trajectories = TakeBatch(&ordinals)};
  HALFSTEP_RETURN_IF_ERROR(log_->Append(logged));
  HALFSTEP_ASSIGN_OR_RETURN(TrainBatch batch,
                            MakeFreeBatch(settings_, progress, std::move(logged)));
  batch.wait_time = wait_time;
  for (SampleRecord& sample : batch.samples) sample.row = rows_.at(sample.group);
  for (const uint64_t ordinal : ordinals) rows_.erase(ordinal);
  return batch;
}

void FreeRolloutSource::Begin(const RunProgress& progress) {
  begun_ = true;
  const OpenGroups groups{progress.cursor, progress.open_groups};
  reopened_ = groups.open;
  next_ = groups.next();
}

void FreeRolloutSource::AssignAhead(uint64_t version) {
  const int64_t ahead = (settings_.max_lag + 1) * settings_.prompts;
  const auto all = static_cast<uint64_t>(settings_.steps * settings_.prompts);
  std::vector<uint64_t> ordinals, floors;
  while (outstanding_ + static_cast<int64_t>(ordinals.size()) < ahead &&
         (!reopened_.empty() || next_ < all)) {
    if (!reopened_.empty()) {
      ordinals.push_back(reopened_.front());
      reopened_.erase(reopened_.begin());
    } else {
      ordinals.push_back(next_++);
    }
    const int64_t before = outstanding_ + static_cast<int64_t>(ordinals.size()) - 1;
    const int64_t floor =
        static_cast<int64_t>(version) + before / settings_.prompts - settings_.max_lag;
    floors.push_back(static_cast<uint64_t>(std::max<int64_t>(floor, 0)));
  }
  outstanding_ += static_cast<int64_t>(ordinals.size());
  Assign(ordinals, floors);
}

void FreeRolloutSource::Assign(const std::vector<uint64_t>& ordinals,
                               const std::vector<uint64_t>& floors) {
  if (ordinals.empty()) return;
  std::vector<GroupTask> tasks;
  for (size_t i = 0; i < ordinals.size(); ++i) {
    const DatasetRow& row = dataset_->Shuffled(settings_.seed, ordinals[i]);
    GroupTask& task = tasks.emplace_back(
        TrainTask(settings_, max_positions_, {Purpose::kTrain, ordinals[i]}, row));
    task.assignment.free = true;
    task.assignment.version = floors[i];
    rows_[ordinals[i]] = row.line;
  }
  client_->Assign(std::move(tasks));
}

void FreeRolloutSource::Add(std::vector<Trajectory> trajectories) {
  for (Trajectory& trajectory : trajectories) {
    const uint64_t ordinal = trajectory.key.ordinal;
    // The first run of a response is its oldest.
    const uint64_t oldest = trajectory.sample.versions.front().version;
    if (complete_.empty() || complete_.back().ordinal != ordinal) {
      complete_.push_back({ordinal, oldest, {}});
      again_.erase(ordinal);
    }
    CompleteGroup& group = complete_.back();
    group.oldest_version = std::min(group.oldest_version, oldest);
    group.trajectories.push_back(std::move(trajectory));
  }
}

void FreeRolloutSource::DropStale(uint64_t version) {
  const auto max_lag = static_cast<uint64_t>(settings_.max_lag);
  std::vector<uint64_t> dropped;
  for (const CompleteGroup& group : complete_) {
    HALFSTEP_CHECK_LE(group.oldest_version, version);
    if (version - group.oldest_version <= max_lag) continue;
    dropped.push_back(group.ordinal);
    again_.insert(group.ordinal);
    for (const Trajectory& trajectory : group.trajectories) {
      ++stale_samples_;
      stale_tokens_ += static_cast<int64_t>(trajectory.sample.tokens.size());
    }
  }
  if (dropped.empty()) return;
  std::erase_if(complete_, [&](const CompleteGroup& group) {
    return version - group.oldest_version > max_lag;
  });
  LogInfo("groups are generated again: they hold tokens older than batch.max_lag allows",
          {{"groups", static_cast<int64_t>(dropped.size())}, {"version", version}});
  // Begun by the policy in force: however long the batch takes to fill, it stays that.
  Assign(dropped, std::vector<uint64_t>(dropped.size(), version));
}

bool FreeRolloutSource::BatchIsComplete() const {
  return again_.empty() && static_cast<int64_t>(complete_.size()) >= settings_.prompts;
}

std::vector<Trajectory> FreeRolloutSource::TakeBatch(std::vector<uint64_t>* ordinals) {
  const auto end = complete_.begin() + settings_.prompts;
  std::sort(complete_.begin(), end,
            [](const CompleteGroup& a, const CompleteGroup& b) { return a.ordinal < b.ordinal; });
  std::vector<Trajectory> trajectories;
  for (auto group = complete_.begin(); group != end; ++group) {
    ordinals->push_back(group->ordinal);
    std::move(group->trajectories.begin(), group->trajectories.end(),
              std::back_inserter(trajectories));
  }
  complete_.erase(complete_.begin(), end);
  outstanding_ -= settings_.prompts;
  return trajectories;
}

}  // namespace halfstep
