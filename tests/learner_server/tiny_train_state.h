// SPDX-License-Identifier: Apache-2.0
// A model so small that tests can differentiate it or enumerate its responses, ready to be trained.
#pragma once

#include <cstdint>
#include <memory>

#include "common/model/initialize.h"
#include "common/model/model_config.h"
#include "kernels/exec_context.h"
#include "learner_server/training/train_state.h"

namespace halfstep {

inline ModelConfig TinyTrainConfig() {
  ModelConfig config;
  config.vocab_size = 40;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 8;
  config.qk_norm = true;
  config.tie_word_embeddings = true;
  config.max_positions = 64;
  config.initializer_range = 0.1f;
  return config;
}

struct TinyStateOptions {
  DType dtype = DType::kFloat32;
  LossScaleOptions loss_scale = {};
  uint64_t seed = 11;
};

// At random, with its computing weights packed.
inline std::unique_ptr<TrainState> MakeTinyState(const ExecContext& ctx, const ModelConfig& config,
                                                 const TinyStateOptions& options = {}) {
  auto state =
      std::make_unique<TrainState>(config, std::make_shared<const ParameterLayout>(config),
                                   options.dtype, config.max_positions, options.loss_scale);
  InitializeParameters(config, options.seed, &state->master);
  state->RefreshWeights(ctx);
  return state;
}

}  // namespace halfstep
