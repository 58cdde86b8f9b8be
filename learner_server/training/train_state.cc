// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/train_state.h"

#include "kernels/ops/elementwise.h"

namespace halfstep {

TrainState::TrainState(const ModelConfig& config, std::shared_ptr<const ParameterLayout> layout,
                       DType dtype, int64_t rope_positions, const LossScaleOptions& loss_scale,
                       Device device)
    : master(layout, DType::kFloat32, "master", device),
      first_moment(layout, DType::kFloat32, "first_moment", device),
      second_moment(layout, DType::kFloat32, "second_moment", device),
      weights(config, layout, dtype, rope_positions, device),
      scaler(loss_scale) {}

void TrainState::RefreshWeights(const ExecContext& ctx) {
  // A weight beyond the format must show as Inf, so that it is never published.
  Cast(ctx, master.flat(), Overflow::kInfinity, weights.parameters().flat());
  weights.Pack(ctx);
}

}  // namespace halfstep
