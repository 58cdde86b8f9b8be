// SPDX-License-Identifier: Apache-2.0
// ReferencePolicy: the fixed policy that KL is measured to, in the learner's precision.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/fp32_parts.h"
#include "common/model/model_weights.h"
#include "kernels/exec_context.h"
#include "learner_server/data/batcher.h"

namespace halfstep {

struct HuggingFaceModel;
struct JobInputs;
struct JobSettings;

// INVALID_ARGUMENT, reason REFERENCE_MISMATCH, naming the first thing that differs, unless
// `reference` has the architecture, the shapes and the vocabulary size of `model`.
absl::Status CheckReference(const HuggingFaceModel& reference, const HuggingFaceModel& model);

// One trainer thread.
class ReferencePolicy {
 public:
  // Reads the weights of `inputs.reference`, which is there. Fails with the reasons of
  // LoadHuggingFaceWeights.
  static absl::StatusOr<std::unique_ptr<ReferencePolicy>> Load(const ExecContext& ctx,
                                                               const JobSettings& settings,
                                                               const JobInputs& inputs);

  // Fills in `reference` of each sequence by one forward. NON_FINITE_LOSS as ScoreResponses;
  // CANCELLED once `stop`, which is asked after every micro-batch, says so.
  absl::Status Score(const std::function<bool()>& stop, std::span<TrainSequence> sequences) const;

 private:
  ReferencePolicy(const ExecContext& ctx, const JobSettings& settings, const JobInputs& inputs);

  const ExecContext ctx_;
  const Fp32Parts fp32_;
  const float temperature_;
  const int64_t micro_batch_tokens_;
  ModelWeights weights_;
};

}  // namespace halfstep
