// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/score_responses.h"

#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/model/batch_indices.h"
#include "common/model/transformer.h"
#include "kernels/buffer.h"
#include "kernels/host_mirror.h"
#include "kernels/ops/log_prob.h"
#include "kernels/workspace.h"

namespace halfstep {

absl::StatusOr<std::vector<std::vector<float>>> ScoreResponses(
    const ExecContext& ctx, const ModelWeights& weights, std::span<const TrainSequence> sequences,
    const ScoreOptions& options) {
  std::vector<int64_t> indices(sequences.size());
  std::iota(indices.begin(), indices.end(), 0);
  const Transformer transformer(weights.config(), options.fp32);
  // Of all that a backward would want, a layer's input is the least that a forward can keep.
  TrainActivations activations;
  std::vector<std::vector<float>> scored(sequences.size());
  int64_t done = 0;
  for (const MicroBatch& micro : PackMicroBatches(sequences, indices, options.micro_batch_tokens)) {
    const auto rows = static_cast<int64_t>(micro.batch.logit_rows.size());
    OwnedTensor hidden("score.hidden", options.fp32.hidden_dtype(weights.dtype()),
                       {rows, weights.config().hidden_size}, ctx.device);
    HostMirror<float> log_probs("score.log_probs", rows, ctx.device);
    transformer.ForwardTrain(ctx, weights, micro.batch, Recompute::kLayer, &activations,
                             hidden.view());
    Workspace::Scope scratch(ctx.workspace);
    LmHeadLogProb(ctx, hidden.view(), weights.head(), IndicesOf(ctx, micro.batch.targets, &scratch),
                  options.temperature, log_probs.device(0, rows), Tensor(), Tensor());
    log_probs.ToHost(ctx, 0, rows);
    for (const PackedSequence& packed : micro.sequences) {
      const float* const first = log_probs.host() + packed.first_row;
      for (int64_t row = 0; row < packed.rows; ++row) {
        if (std::isfinite(first[row])) continue;
        return Error(
            absl::StatusCode::kFailedPrecondition, "NON_FINITE_LOSS",
            absl::StrCat("the log-prob of response token ", row, " of sequence ", packed.sequence,
                         " is ", first[row], " in ", Name(weights.dtype()),
                         ": the forward pass overflows; use bf16 or fp32"));
      }
      scored[packed.sequence].assign(first, first + packed.rows);
    }
    done += static_cast<int64_t>(micro.sequences.size());
    if (options.go_on != nullptr && !options.go_on(done)) {
      return absl::CancelledError("interrupted while the learner's engine scored");
    }
  }
  return scored;
}

}  // namespace halfstep
