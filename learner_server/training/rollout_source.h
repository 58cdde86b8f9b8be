// SPDX-License-Identifier: Apache-2.0
// RolloutSource: batches that rollout servers generate, at most `lag` ahead of training.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "learner_server/data/prompt_dataset.h"
#include "learner_server/training/batch_source.h"
#include "learner_server/training/job_settings.h"
#include "learner_server/training/rollout_client.h"

namespace halfstep {

// The version that generates batch `step` (from 1): the one in force after batch step - 1 - lag.
uint64_t GeneratingVersion(const RunProgress& progress, int64_t step, int64_t lag);

// Advantages, statistics and sequences of a batch whose groups have `samples` trajectories each, in
// canonical order. Responses without a score take no part. FAILED_PRECONDITION, reason
// REWARDS_MISSING, when more than half of the batch has none. The rows of saved samples are left to
// the caller.
absl::StatusOr<TrainBatch> MakeTrainBatch(const JobSettings& settings, int64_t step,
                                          std::vector<Trajectory> trajectories);

// The sampling of a training or evaluation group: a response ends with the model's last position.
SamplingParams SamplingFor(const SamplingParams& sampling, int64_t prompt_tokens,
                           int64_t max_positions);

// What a training group of `row` is asked to be; version and deadline are left to the caller.
GroupTask TrainTask(const JobSettings& settings, int64_t max_positions, const GroupKey& key,
                    const DatasetRow& row);

class RolloutSource final : public BatchSource {
 public:
  // All must outlive it. The versions that the first batches name are already published.
  RolloutSource(const JobSettings& settings, int64_t max_positions, PromptDataset* dataset,
                RolloutClient* client)
      : settings_(settings), max_positions_(max_positions), dataset_(dataset), client_(client) {}

  absl::StatusOr<TrainBatch> Next(int64_t step, const RunProgress& progress) override;

 private:
  void Dispatch(int64_t step, const RunProgress& progress);
  std::vector<GroupKey> KeysOf(int64_t step) const;

  const JobSettings& settings_;
  const int64_t max_positions_;
  PromptDataset* const dataset_;
  RolloutClient* const client_;
  int64_t dispatched_ = -1;           // the last step whose groups were assigned; -1: none yet
  std::map<uint64_t, int64_t> rows_;  // by group: the line of its prompt, until its batch is made
};

}  // namespace halfstep
