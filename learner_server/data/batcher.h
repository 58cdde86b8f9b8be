// SPDX-License-Identifier: Apache-2.0
// Packing of whole sequences into micro-batches by a token budget.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/model/batch.h"
#include "common/trajectory/trajectory.h"

namespace halfstep {

// One prompt with one response, as the train step wants it.
struct TrainSequence {
  std::vector<int32_t> tokens;   // prompt, then response
  int64_t prompt_tokens = 0;     // at least 1
  std::vector<float> behaviour;  // log mu of each response token; empty for supervised data
  std::vector<float> old;        // log pi_old of the same; empty where the algorithm reads none
  std::vector<float> reference;  // of the reference policy; likewise
  double advantage = 0;
  std::string rollout_id;            // who generated it; empty for supervised data
  std::vector<VersionRun> versions;  // of the response tokens; empty for supervised data
  // Response tokens from here on are of the policy that was in force when the batch was begun:
  // their behaviour log-probs can be compared with its own.
  int64_t current_from = 0;

  int64_t response_tokens() const { return static_cast<int64_t>(tokens.size()) - prompt_tokens; }
};

// Which scored rows of a micro-batch belong to which sequence.
struct PackedSequence {
  int64_t sequence = 0;   // index into the list that was packed
  int64_t first_row = 0;  // among the batch's logit_rows
  int64_t rows = 0;       // its response tokens
};

struct MicroBatch {
  PackedBatch batch;
  std::vector<PackedSequence> sequences;
};

// Packs the sequences that `indices` names, in that order; a sequence longer than the budget runs
// alone. A response's last token is predicted but never read, so it is no input.
std::vector<MicroBatch> PackMicroBatches(std::span<const TrainSequence> sequences,
                                         std::span<const int64_t> indices, int64_t token_budget);

}  // namespace halfstep
