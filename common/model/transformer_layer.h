// SPDX-License-Identifier: Apache-2.0
// The parts of one decoder layer that training and inference share. Internal to common/model.
// Tensors are in the dtype of the weights, but for those of the residual stream (x, residual, mid,
// output), which may be FP32: products are then added to it unrounded.
//
//   x -> norm -> qkv -> [norm per head] -> RoPE -> attention -> out projection -> + x = mid
//   mid -> norm -> gate_up -> SwiGLU -> down -> + mid = output
#pragma once

#include "common/model/model_weights.h"
#include "common/model/tensor_observer.h"
#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep {

// What every part of one layer's pass needs. Scratch comes from ctx.workspace.
struct LayerPass {
  const ExecContext& ctx;
  const ModelWeights& weights;
  const LayerParameters& layer;
  ConstTensor positions;  // int32 [tokens]
  int64_t index = 0;      // of the layer
  TensorObserver* observer = nullptr;

  void Observe(StoredPass pass, StoredKind kind, ConstTensor values) const {
    if (observer != nullptr) observer->Observe(pass, kind, index, values);
  }
  const ModelConfig& config() const { return weights.config(); }
};

// Queries, keys and values of a layer. With QK-norm, q_raw and k_raw are the values before the
// norm; without, they are the memory of q and k. rstd_q and rstd_k may be empty when no backward
// follows.
struct HeadTensors {
  Tensor q_raw;   // [tokens, heads * head_dim]
  Tensor k_raw;   // [tokens, kv_heads * head_dim]
  Tensor rstd_q;  // FP32 [tokens * heads]
  Tensor rstd_k;  // FP32 [tokens * kv_heads]
  Tensor q;       // [tokens, heads, head_dim], rotated
  Tensor k;       // [tokens, kv_heads, head_dim], rotated
  Tensor v;       // [tokens, kv_heads, head_dim]
};

// x: [tokens, hidden]; rstd: FP32 [tokens] or empty.
void ForwardHeads(const LayerPass& pass, ConstTensor x, Tensor rstd, const HeadTensors& heads);

// mid = attention Wo^T + residual. attention: [rows, heads * head_dim]; residual, mid: [rows,
// hidden].
void ForwardAttentionOut(const LayerPass& pass, ConstTensor attention, ConstTensor residual,
                         Tensor mid);

// gate_up: [rows, 2 * intermediate]; rstd: FP32 [rows] or empty.
void ForwardGateUp(const LayerPass& pass, ConstTensor mid, Tensor rstd, Tensor gate_up);

// output = SwiGLU(gate_up) Wd^T + mid: [rows, hidden].
void ForwardDown(const LayerPass& pass, ConstTensor gate_up, ConstTensor mid, Tensor output);

}  // namespace halfstep
