// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/train_state.h"

#include "kernels/ops/elementwise.h"

namespace halfstep {

TrainState::TrainState(const ModelConfig& config, std::shared_ptr<const ParameterLayout> layout,
                       DType dtype, int64_t rope_positions, const LossScaleOptions& loss_scale)
    : master(layout, DType::kFloat32, "master"),
      first_moment(layout, DType::kFloat32, "first_moment"),
      second_moment(layout, DType::kFloat32, "second_moment"),
      weights(config, layout, dtype, rope_positions),
      scaler(loss_scale) {}

void TrainState::RefreshWeights(const ExecContext& ctx) {
  // A weight beyond the format must show as Inf, so that it is never published.
  Cast(ctx, master.flat(), Overflow::kInfinity, weights.parameters().flat());
  weights.Pack(ctx);
}

}  // namespace halfstep
