// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/loss_gradient.h"

#include <utility>

#include "common/base/status_macros.h"
#include "kernels/check.h"

namespace halfstep {

absl::StatusOr<SharedGradient> LossGradient(const ExecContext& ctx, TrainStepOptions options,
                                            std::span<const TrainSequence> sequences,
                                            TrainState* state) {
  HALFSTEP_CHECK(!sequences.empty());
  // A step of learning rate 0 without momentum leaves the weights as they are, and the gradient in
  // the first moment.
  options.schedule = {.peak = 0};
  options.beta1 = 0;
  options.weight_decay = 0;
  options.clip_norm = 0;
  TrainStep step(ctx, options, state);
  // One that overflows is skipped, and lowers the loss scale.
  for (bool applied = false; !applied;) {
    HALFSTEP_ASSIGN_OR_RETURN(const OptimizerStepReport report, step.Run(sequences, nullptr));
    applied = report.applied;
  }
  const ConstTensor gradient = std::as_const(state->first_moment).flat();
  return std::make_shared<const std::vector<float>>(gradient.as<float>(),
                                                    gradient.as<float>() + gradient.elements());
}

}  // namespace halfstep
