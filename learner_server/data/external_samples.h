// SPDX-License-Identifier: Apache-2.0
// Responses that another program's engine generated, with the log-probs it gave to them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "learner_server/data/batcher.h"

namespace halfstep {

struct ExternalSampleLimits {
  int64_t vocab_size = 0;           // of the model that shall score them
  int64_t max_sequence_tokens = 0;  // prompt plus response
};

// Reads a JSON Lines file with an object {"prompt_ids": [...], "response_ids": [...], "log_probs":
// [...]} on each line; other keys are ignored. INVALID_ARGUMENT "path:line: ..." (reason
// BAD_DATASET_ROW) for a key that is missing or no list of numbers, an empty prompt or response,
// lists of unequal length, an id beyond the vocabulary, a sequence that is too long, and a log-prob
// that is not finite or above 0; otherwise the errors of ForEachJsonlRow.
absl::StatusOr<std::vector<TrainSequence>> ReadExternalSamples(const std::string& path,
                                                               const ExternalSampleLimits& limits);

}  // namespace halfstep
