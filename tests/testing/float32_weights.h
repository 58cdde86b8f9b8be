// SPDX-License-Identifier: Apache-2.0
// A model folder in FP32, for comparison with other programs.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/hugging_face.h"
#include "common/model/model_weights.h"
#include "kernels/workspace.h"

namespace halfstep {

// Packed. The errors of OpenHuggingFaceModel and LoadHuggingFaceWeights.
inline absl::StatusOr<std::shared_ptr<const ModelWeights>> LoadFloat32Weights(
    const std::string& directory) {
  HALFSTEP_ASSIGN_OR_RETURN(const HuggingFaceModel model, OpenHuggingFaceModel(directory));
  auto weights = std::make_shared<ModelWeights>(model.config, model.layout, DType::kFloat32,
                                                model.config.max_positions);
  HALFSTEP_RETURN_IF_ERROR(LoadHuggingFaceWeights(model, &weights->parameters()));
  Workspace workspace;
  ExecContext ctx;
  ctx.workspace = &workspace;
  weights->Pack(ctx);
  return weights;
}

}  // namespace halfstep
