// SPDX-License-Identifier: Apache-2.0
// The gradient of a loss on given sequences, as a train step computes it, without training.
#pragma once

#include <span>

#include "absl/status/statusor.h"
#include "kernels/exec_context.h"
#include "learner_server/algorithm/gradient_bias.h"
#include "learner_server/training/train_step.h"

namespace halfstep {

// dL/dw over `sequences` (at least one), unscaled and unclipped: [buffer_elements] of the layout.
// Of `options`, what belongs to the optimizer is not read. Weights and master stay as they are;
// the loss scale is lowered where gradients overflow. `state` is used for nothing else. The errors
// of TrainStep::Run.
absl::StatusOr<SharedGradient> LossGradient(const ExecContext& ctx, TrainStepOptions options,
                                            std::span<const TrainSequence> sequences,
                                            TrainState* state);

}  // namespace halfstep
