// SPDX-License-Identifier: Apache-2.0
// Some of a run's responses with their lineage, from samples.jsonl of any size.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/runs/run_record.h"

namespace halfstep {

struct SampleRow {
  int64_t step = 0;
  int64_t group = 0;
  int64_t index = 0;
  int64_t row = 0;                    // of the training data, from 1
  std::optional<std::string> prompt;  // none when the data is not where the job had it
  std::string text;
  std::string rollout;
  std::string versions;  // "12", or "12 (30 tokens), 13 (4 tokens)"
  std::string finish_reason;
  int64_t tokens = 0;
  std::string reward;  // the score, or why there is none
  std::optional<double> advantage;
};

struct SampleExcerpt {
  int64_t lines = 0;  // of the file
  int64_t steps = 0;
  std::vector<SampleRow> rows;  // steps ascending
};

struct ExcerptSize {
  size_t steps = 6;    // spread over the run, first and last among them
  size_t samples = 4;  // spread over the step
};

// Nothing for a run that saved none. Errors are those of JsonLineReader.
absl::StatusOr<std::optional<SampleExcerpt>> ReadSampleExcerpt(const RunRecord& run,
                                                               const ExcerptSize& size);

}  // namespace halfstep
