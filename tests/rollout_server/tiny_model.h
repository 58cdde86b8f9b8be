// SPDX-License-Identifier: Apache-2.0
// A random model of a few thousand parameters, and the learner's way to score what it generated.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "common/model/model_weights.h"
#include "common/model/transformer.h"
#include "kernels/ops/log_prob.h"
#include "kernels/thread_pool.h"
#include "kernels/workspace.h"

namespace halfstep {

inline ModelConfig TinyConfig() {
  ModelConfig config;
  config.architecture = Architecture::kQwen3;
  config.vocab_size = 261;  // every byte, <eos>, and ids without a token
  config.hidden_size = 48;
  config.intermediate_size = 80;
  config.layers = 3;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 16;
  config.max_positions = 512;
  config.tie_word_embeddings = true;
  config.qk_norm = true;
  config.eos_token_ids = {1};
  return config;
}

inline void StoreAs(DType dtype, void* data, int64_t index, float value) {
  switch (dtype) {
    case DType::kFloat16:
      static_cast<Float16*>(data)[index] = ToFloat16(value);
      return;
    case DType::kBFloat16:
      static_cast<BFloat16*>(data)[index] = ToBFloat16(value);
      return;
    default:
      static_cast<float*>(data)[index] = value;
  }
}

// Not yet packed, so that a test may change it.
inline std::shared_ptr<ModelWeights> UnpackedTinyWeights(uint32_t seed,
                                                         DType dtype = DType::kFloat16,
                                                         const ModelConfig& config = TinyConfig()) {
  auto layout = std::make_shared<const ParameterLayout>(config);
  auto weights = std::make_shared<ModelWeights>(config, layout, dtype, config.max_positions);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.15f);
  for (size_t i = 0; i < layout->specs().size(); ++i) {
    const Tensor view = weights->parameters().view(static_cast<int>(i));
    const bool norm = view.rank() == 1;
    for (int64_t j = 0; j < view.elements(); ++j) {
      StoreAs(dtype, view.data(), j, norm ? 1.0f + normal(random) : normal(random));
    }
  }
  return weights;
}

inline std::shared_ptr<const ModelWeights> Packed(std::shared_ptr<ModelWeights> weights) {
  Workspace workspace;
  ExecContext ctx;
  ctx.workspace = &workspace;
  weights->Pack(ctx);
  return weights;
}

inline std::shared_ptr<const ModelWeights> TinyWeights(uint32_t seed,
                                                       DType dtype = DType::kFloat16) {
  return Packed(UnpackedTinyWeights(seed, dtype));
}

// Log-probs of response tokens as the learner computes them: `sequences` (prompt, response) packed
// into one batch.
inline std::vector<std::vector<float>> LearnerLogProbs(
    const ModelWeights& weights,
    const std::vector<std::pair<std::vector<int32_t>, std::vector<int32_t>>>& sequences,
    float temperature) {
  PackedBatch batch;
  batch.cu_seqlens.push_back(0);
  for (const auto& [prompt, response] : sequences) {
    std::vector<int32_t> tokens = prompt;
    tokens.insert(tokens.end(), response.begin(), response.end());
    for (size_t p = 0; p + 1 < tokens.size(); ++p) {
      if (p + 1 >= prompt.size()) {
        batch.logit_rows.push_back(static_cast<int32_t>(batch.tokens.size()));
        batch.targets.push_back(tokens[p + 1]);
      }
      batch.tokens.push_back(tokens[p]);
      batch.positions.push_back(static_cast<int32_t>(p));
    }
    batch.cu_seqlens.push_back(static_cast<int32_t>(batch.tokens.size()));
  }
  const auto rows = static_cast<int64_t>(batch.logit_rows.size());
  Workspace workspace;
  ThreadPool threads(2);
  ExecContext ctx;
  ctx.workspace = &workspace;
  ctx.threads = &threads;
  const Transformer transformer(weights.config());
  TrainActivations activations;
  OwnedTensor hidden("hidden", weights.dtype(), {rows, weights.config().hidden_size});
  transformer.ForwardTrain(ctx, weights, batch, Recompute::kNone, &activations, hidden);
  std::vector<float> flat(rows);
  LmHeadLogProb(ctx, hidden, weights.head(),
                ConstTensor(batch.targets.data(), DType::kInt32, {rows}), temperature,
                Tensor(flat.data(), DType::kFloat32, {rows}), {}, {});

  std::vector<std::vector<float>> log_probs;
  auto next = flat.begin();
  for (const auto& [prompt, response] : sequences) {
    log_probs.emplace_back(next, next + static_cast<int64_t>(response.size()));
    next += static_cast<int64_t>(response.size());
  }
  return log_probs;
}

}  // namespace halfstep
