// SPDX-License-Identifier: Apache-2.0
// The first response in which two runs' samples.jsonl differ.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace halfstep {

struct SampleDifference {
  int64_t step = 0;
  int64_t group = 0;
  int64_t index = 0;
  // The key of samples.jsonl that differs, causes before effects: row, versions, tokens, log_probs,
  // finish_reason, outcome, reward, detail, advantage. "sample": only one run has it here, the
  // other another one or none.
  std::string what;
  std::optional<int64_t> token;  // of tokens and log_probs: which of the response, from 0
  std::string a, b;              // log-probs with their FP32 bits
};

struct SampleComparison {
  bool compared = false;  // both runs saved samples, or logged them for a replay
  int64_t samples = 0;    // that are equal before the first difference
  std::optional<SampleDifference> first;
};

// Of samples.jsonl where both runs have it, else of replay.log, which has no rows and advantages.
// Streams both files, whatever their size. Which rollout generated a sample is not compared.
// log_probs only where both have them. Errors are those of JsonLineReader and
// ReplayLogReader.
absl::StatusOr<SampleComparison> DiffSamples(const std::string& run_a, const std::string& run_b);

}  // namespace halfstep
