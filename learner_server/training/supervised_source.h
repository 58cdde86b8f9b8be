// SPDX-License-Identifier: Apache-2.0
// SupervisedSource: rows with given responses, in the seeded order of the data.
#pragma once

#include <cstdint>

#include "learner_server/data/prompt_dataset.h"
#include "learner_server/training/batch_source.h"

namespace halfstep {

class SupervisedSource final : public BatchSource {
 public:
  // `dataset`, loaded with responses, must outlive it.
  SupervisedSource(PromptDataset* dataset, uint64_t seed, int64_t rows_per_step)
      : dataset_(dataset), seed_(seed), rows_per_step_(rows_per_step) {}

  // Never blocks and never fails.
  absl::StatusOr<TrainBatch> Next(int64_t step, const RunProgress& progress) override;

 private:
  PromptDataset* const dataset_;
  const uint64_t seed_;
  const int64_t rows_per_step_;
};

}  // namespace halfstep
