// SPDX-License-Identifier: Apache-2.0
// What a policy that was decoded by one engine is worth under the other.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "absl/status/statusor.h"
#include "common/model/fp32_parts.h"
#include "common/model/model_weights.h"
#include "common/trajectory/trajectory.h"
#include "kernels/exec_context.h"

namespace halfstep {

struct DeploymentGap {
  // Expected reward of responses that the learner's engine would sample, estimated from those of
  // the rollout's by self-normalised importance weights w = exp(sum over the response of
  // log pi - log mu), the sum clamped to +-kLogRatioLimit: sum(w r) / sum(w). A response without a
  // score counts as 0.
  double learner_accuracy = 0;
  double abs_log_prob_diff = 0;  // mean over tokens of |log pi - log mu|, nats
  int64_t tokens = 0;
};

struct DeploymentGapOptions {
  float temperature = 1;  // at which the responses were sampled
  Fp32Parts fp32;         // of both engines
  int64_t micro_batch_tokens = 4096;
  std::function<bool()> go_on;  // asked between micro-batches; may be empty
};

// Scores `sampled`, trajectories of the policy of `weights` (the learner's, packed), again. Errors
// are those of ScoreResponses.
absl::StatusOr<DeploymentGap> MeasureDeploymentGap(const ExecContext& ctx,
                                                   const ModelWeights& weights,
                                                   std::span<const Trajectory> sampled,
                                                   const DeploymentGapOptions& options);

}  // namespace halfstep
