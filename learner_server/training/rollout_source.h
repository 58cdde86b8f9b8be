// SPDX-License-Identifier: Apache-2.0
// RolloutSource: batches that rollout servers generate, at most `lag` ahead of training.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "learner_server/data/prompt_dataset.h"
#include "learner_server/training/batch_source.h"
#include "learner_server/training/job_settings.h"
#include "learner_server/training/rollout_client.h"

namespace halfstep {

// The version that generates batch `step` (from 1): the one in force after batch step - 1 - lag.
uint64_t GeneratingVersion(const RunProgress& progress, int64_t step, int64_t lag);

// What was generated for a batch: groups of `samples` trajectories each, in canonical order.
struct GeneratedGroups {
  std::vector<Trajectory> trajectories;
  // The greedy response to the prompt of each group, where the advantage compares with it; it is
  // scored, and nothing else.
  std::vector<Trajectory> greedy = {};
};

// Fills in the reference policy's log-probs of sequences. May be empty where there is none.
using ReferenceScorer = std::function<absl::Status(std::span<TrainSequence>)>;

// Advantages, statistics and sequences of a batch. Responses without a score take no part, nor do
// groups without different scores where the algorithm drops or resamples them. Advantages are of
// scores with the penalties of length and, where it goes there, of KL; the statistics are of those
// without. FAILED_PRECONDITION, reason REWARDS_MISSING, when more than half of the batch has no
// score; and the failures of `reference`. The rows of saved samples are left to the caller.
absl::StatusOr<TrainBatch> MakeTrainBatch(const JobSettings& settings, int64_t step,
                                          GeneratedGroups groups,
                                          const ReferenceScorer& reference = nullptr);

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

  // Of a job whose algorithm has a reference policy.
  void UseReference(ReferenceScorer reference) { reference_ = std::move(reference); }

  // With dynamic sampling, FAILED_PRECONDITION, reason NO_MIXED_GROUPS, once kMostGroupsPerPrompt
  // times the groups of a batch were not enough.
  absl::StatusOr<TrainBatch> Next(int64_t step, const RunProgress& progress) override;

 private:
  // Prompts in a row of the data order. A group has the number of its prompt in it.
  struct Rows {
    uint64_t first = 0;
    int64_t count = 0;
  };
  struct Collected;

  // What the batch begins with.
  Rows RowsOf(int64_t step, const RunProgress& progress) const;
  void Dispatch(const Rows& rows, uint64_t version);
  absl::Status Collect(const Rows& rows, Collected* collected);
  // Further prompts until the batch has as many groups with different scores as it trains on.
  absl::Status Resample(Rows rows, uint64_t version, Collected* collected);

  const JobSettings& settings_;
  const int64_t max_positions_;
  PromptDataset* const dataset_;
  RolloutClient* const client_;
  int64_t dispatched_ = -1;  // the last step whose groups were assigned; -1: none yet
  ReferenceScorer reference_;
  std::map<uint64_t, int64_t> rows_;  // by group: the line of its prompt, until its batch is made
};

}  // namespace halfstep
