// SPDX-License-Identifier: Apache-2.0
// Everything that an optimizer step changes.
#pragma once

#include <cstdint>
#include <memory>

#include "common/model/model_weights.h"
#include "common/model/parameter_buffer.h"
#include "kernels/exec_context.h"
#include "learner_server/training/loss_scaler.h"

namespace halfstep {

// Not thread-safe: owned by the trainer thread.
struct TrainState {
  // Zero moments, zero master on `device`: fill `master`, then call RefreshWeights.
  TrainState(const ModelConfig& config, std::shared_ptr<const ParameterLayout> layout, DType dtype,
             int64_t rope_positions, const LossScaleOptions& loss_scale,
             Device device = kCpuDevice);

  const ParameterLayout& layout() const { return master.layout(); }
  // Casts the master into the computing weights and packs them.
  void RefreshWeights(const ExecContext& ctx);

  ParameterBuffer master;
  ParameterBuffer first_moment;
  ParameterBuffer second_moment;
  ModelWeights weights;  // the master in the dtype that computes
  LossScaler scaler;
  int64_t optimizer_steps = 0;  // applied ones: Adam's t and the schedule's clock
};

}  // namespace halfstep
