// SPDX-License-Identifier: Apache-2.0
// What the training forward leaves behind for the backward. Internal to common/model.
#pragma once

#include <cmath>
#include <vector>

#include "common/model/batch_indices.h"
#include "common/model/transformer.h"
#include "common/model/transformer_layer.h"
#include "kernels/buffer.h"
#include "kernels/ops/attention.h"

namespace halfstep {

// Values that are cheap to make again from these (norm outputs, SwiGLU outputs) are not kept. The
// last layer works on `rows` = logit rows after its attention, the others on all tokens.
struct LayerActivations {
  Tensor rstd_attention;  // FP32 [tokens]
  HeadTensors heads;
  Tensor attention;  // [tokens, heads, head_dim]
  Tensor lse;        // FP32 [heads, tokens]
  Tensor mid;        // [rows, hidden], of the residual stream
  Tensor rstd_mlp;   // FP32 [rows]
  Tensor gate_up;    // [rows, 2 * intermediate]
};

// `take(dtype, shape)` lends the memory.
template <class Take>
LayerActivations TakeLayerActivations(const ModelConfig& config, const ActivationDTypes& dtypes,
                                      int64_t tokens, int64_t rows, Take&& take) {
  const DType dtype = dtypes.values;
  LayerActivations out;
  out.rstd_attention = take(DType::kFloat32, Shape{tokens});
  HeadTensors& heads = out.heads;
  heads.q = take(dtype, Shape{tokens, config.heads, config.head_dim});
  heads.k = take(dtype, Shape{tokens, config.kv_heads, config.head_dim});
  heads.v = take(dtype, Shape{tokens, config.kv_heads, config.head_dim});
  if (config.qk_norm) {
    heads.q_raw = take(dtype, Shape{tokens, config.q_width()});
    heads.k_raw = take(dtype, Shape{tokens, config.kv_width()});
    heads.rstd_q = take(DType::kFloat32, Shape{tokens * config.heads});
    heads.rstd_k = take(DType::kFloat32, Shape{tokens * config.kv_heads});
  } else {
    heads.q_raw = heads.q.Reshape({tokens, config.q_width()});
    heads.k_raw = heads.k.Reshape({tokens, config.kv_width()});
  }
  out.attention = take(dtype, Shape{tokens, config.heads, config.head_dim});
  out.lse = take(DType::kFloat32, Shape{config.heads, tokens});
  out.mid = take(dtypes.residual, Shape{rows, config.hidden_size});
  out.rstd_mlp = take(DType::kFloat32, Shape{rows});
  out.gate_up = take(dtype, Shape{rows, 2 * config.intermediate_size});
  return out;
}

struct TrainActivations::Impl {
  // Carves the views of one batch out of the arena on `device`, growing it when the batch is the
  // largest yet.
  void Reserve(const ModelConfig& config, const ActivationDTypes& dtypes, const PackedBatch& batch,
               Recompute mode, Device device);
  // What a batch of `tokens`, `rows` of them logit rows, takes of the arena.
  size_t Bytes(const ModelConfig& config, const ActivationDTypes& dtypes, int64_t tokens,
               int64_t rows);

  Recompute recompute = Recompute::kNone;
  std::vector<Tensor> inputs;            // by layer, [tokens, hidden], of the residual stream
  Tensor final_input;                    // [logit_rows, hidden], of the residual stream
  Tensor final_rstd;                     // FP32 [logit_rows]
  std::vector<LayerActivations> layers;  // empty when they are recomputed

 private:
  template <class Take>
  void Carve(const ModelConfig& config, const ActivationDTypes& dtypes, int64_t tokens,
             int64_t rows, Take&& take);

  Buffer arena_;
};

// Rows that a layer computes after its attention: those that are read later.
inline int64_t OutputRows(const ModelConfig& config, int64_t layer, int64_t tokens,
                          int64_t logit_rows) {
  return layer + 1 == config.layers ? logit_rows : tokens;
}

inline float ScoreScale(const ModelConfig& config) {
  return 1.0f / std::sqrt(static_cast<float>(config.head_dim));
}

inline PackedAttention PackedAttentionOf(const ModelConfig& config, const HeadTensors& heads,
                                         const PackedIndices& indices) {
  return {heads.q, heads.k, heads.v, indices.cu_seqlens, ScoreScale(config)};
}

// One layer up to gate_up, everything kept in `saved`. x: [tokens, hidden].
void ForwardLayerForTraining(const LayerPass& pass, const PackedIndices& indices, ConstTensor x,
                             const LayerActivations& saved);

}  // namespace halfstep
