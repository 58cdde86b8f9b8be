// SPDX-License-Identifier: Apache-2.0
// A model small enough to look at, with a parameter of an odd number of elements.
#pragma once

#include <memory>

#include "common/model/model_config.h"
#include "common/model/model_weights.h"
#include "common/model/parameter_buffer.h"
#include "common/weight_sync/weight_set.h"
#include "kernels/ops/rope.h"

namespace halfstep {

inline constexpr int64_t kTinyPositions = 6;

inline ModelConfig TinyConfig() {
  ModelConfig config;
  config.vocab_size = 11;
  config.hidden_size = 5;
  config.intermediate_size = 7;
  config.layers = 2;
  config.heads = 1;
  config.kv_heads = 1;
  config.head_dim = 6;
  config.max_positions = kTinyPositions;
  config.qk_norm = true;
  return config;
}

// Values that differ everywhere and are rounded by the cast.
inline ParameterBuffer TinyMaster(float start = 0.1f) {
  ParameterBuffer master(std::make_shared<const ParameterLayout>(TinyConfig()), DType::kFloat32,
                         "master");
  float value = start;
  for (size_t i = 0; i < master.layout().specs().size(); ++i) {
    const Tensor view = master.view(static_cast<int>(i));
    for (int64_t e = 0; e < view.elements(); ++e) view.as<float>()[e] = value += 0.0137f;
  }
  return master;
}

inline ModelWeights TinyWeights(const ParameterBuffer& master, DType dtype) {
  return ModelWeights(TinyConfig(), master.shared_layout(), dtype, kTinyPositions);
}

}  // namespace halfstep
