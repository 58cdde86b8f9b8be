// SPDX-License-Identifier: Apache-2.0
// Log-probs of given responses as a train step computes them: the same packing, forward and head,
// no loss and no gradients.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/fp32_parts.h"
#include "common/model/model_weights.h"
#include "kernels/exec_context.h"
#include "learner_server/data/batcher.h"

namespace halfstep {

struct ScoreOptions {
  Fp32Parts fp32;
  float temperature = 1;  // above 0
  int64_t micro_batch_tokens = 4096;
  // Told after each micro-batch how many sequences are scored; false ends it. May be empty.
  std::function<bool(int64_t sequences)> go_on;
};

// log pi of every response token of `sequences`, with packed `weights` whose RoPE table is as long
// as the longest of them. FAILED_PRECONDITION (reason NON_FINITE_LOSS), naming sequence and token,
// when the forward overflows; CANCELLED when `go_on` says so.
absl::StatusOr<std::vector<std::vector<float>>> ScoreResponses(
    const ExecContext& ctx, const ModelWeights& weights, std::span<const TrainSequence> sequences,
    const ScoreOptions& options);

}  // namespace halfstep
