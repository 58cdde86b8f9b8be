// SPDX-License-Identifier: Apache-2.0
// FreeRolloutSource: batches of groups as they arrive (batch.max_lag). Rollouts never wait for a
// version, unless what they would begin could only come too late.
//
// Up to max_lag + 1 batches of groups are assigned at once, in data order. When batch s is formed,
// the policy in force is v. A group with b whole batches ahead of it is trained at v + b at the
// earliest, and so may be begun by a version not below v + b - max_lag. A batch is the first groups
// to be complete; within it they stand in canonical order. A group with a token older than
// v - max_lag is dropped whole, because a group without its slowest responses would favour short
// ones, and generated again; the next batch waits for it, so that no prompt starves. While it waits
// the policy stands still, so that sooner or later every rollout serves it, and the wait ends.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <vector>

#include "learner_server/data/prompt_dataset.h"
#include "learner_server/training/batch_source.h"
#include "learner_server/training/job_settings.h"
#include "learner_server/training/open_groups.h"
#include "learner_server/training/replay_log.h"
#include "learner_server/training/rollout_client.h"
#include "learner_server/training/train_state.h"

namespace halfstep {

class FreeRolloutSource final : public BatchSource {
 public:
  // All must outlive it. `state` is what the batches train; each is in `log` before it is given
  // out.
  FreeRolloutSource(const JobSettings& settings, int64_t max_positions, PromptDataset* dataset,
                    RolloutClient* client, const TrainState* state, ReplayLog* log)
      : settings_(settings),
        max_positions_(max_positions),
        dataset_(dataset),
        client_(client),
        state_(state),
        log_(log) {}

  absl::StatusOr<TrainBatch> Next(int64_t step, const RunProgress& progress) override;

 private:
  struct CompleteGroup {
    uint64_t ordinal = 0;
    uint64_t oldest_version = 0;  // of its tokens
    std::vector<Trajectory> trajectories;
  };

  void Begin(const RunProgress& progress);
  // Assigns what may be ahead of training.
  void AssignAhead(uint64_t version);
  void Assign(const std::vector<uint64_t>& ordinals, const std::vector<uint64_t>& floors);
  void Add(std::vector<Trajectory> trajectories);
  // Drops what is too old for `version`, and assigns it again.
  void DropStale(uint64_t version);
  bool BatchIsComplete() const;
  std::vector<Trajectory> TakeBatch(std::vector<uint64_t>* ordinals);

  const JobSettings& settings_;
  const int64_t max_positions_;
  PromptDataset* const dataset_;
  RolloutClient* const client_;
  const TrainState* const state_;
  ReplayLog* const log_;

  bool begun_ = false;
  uint64_t next_ = 0;                   // the next group in data order that was never assigned
  std::vector<uint64_t> reopened_;      // passed over by an earlier attempt, to be assigned first
  int64_t outstanding_ = 0;             // assigned and not in a batch
  std::deque<CompleteGroup> complete_;  // in the order of arrival
  std::set<uint64_t> again_;            // dropped as stale, and not complete again
  int64_t stale_samples_ = 0;           // since the last batch
  int64_t stale_tokens_ = 0;
  std::map<uint64_t, int64_t> rows_;  // by group: the line of its prompt, until its batch is made
};

// What a logged batch and one that was just formed have in common: the batch of `batch.step`, with
// what was dropped before it counted in, and the groups that are open after it. The errors of
// MakeTrainBatch.
absl::StatusOr<TrainBatch> MakeFreeBatch(const JobSettings& settings, const RunProgress& progress,
                                         ReplayBatch batch);

}  // namespace halfstep
