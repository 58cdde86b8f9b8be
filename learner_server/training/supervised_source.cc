// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/supervised_source.h"

#include <utility>

namespace halfstep {

absl::StatusOr<TrainBatch> SupervisedSource::Next(int64_t step, const RunProgress& progress) {
  (void)step;  // the cursor says which rows
  TrainBatch batch;
  batch.rows_consumed = rows_per_step_;
  std::vector<TrainSequence>& sequences = batch.updates.emplace_back();
  for (int64_t i = 0; i < rows_per_step_; ++i) {
    const DatasetRow& row = dataset_->Shuffled(seed_, progress.cursor + static_cast<uint64_t>(i));
    TrainSequence sequence;
    sequence.tokens = row.prompt;
    sequence.tokens.insert(sequence.tokens.end(), row.response.begin(), row.response.end());
    sequence.prompt_tokens = static_cast<int64_t>(row.prompt.size());
    sequence.advantage = 1;
    sequences.push_back(std::move(sequence));
    batch.statistics.lengths.push_back(static_cast<int64_t>(row.response.size()));
  }
  batch.statistics.samples = rows_per_step_;
  batch.statistics.samples_trained = rows_per_step_;
  return batch;
}

}  // namespace halfstep
