// SPDX-License-Identifier: Apache-2.0
// Forward of one decoder layer, without the attention itself.
#include "common/model/transformer_layer.h"

#include <array>

#include "kernels/ops/activation.h"
#include "kernels/ops/elementwise.h"
#include "kernels/ops/norm.h"
#include "kernels/ops/rope.h"
#include "kernels/workspace.h"

namespace halfstep {

void ForwardHeads(const LayerPass& pass, ConstTensor x, Tensor rstd, const HeadTensors& heads) {
  const ModelConfig& config = pass.config();
  const ModelWeights& weights = pass.weights;
  const int64_t tokens = x.dim(0);
  Workspace::Scope scratch(pass.ctx.workspace);

  const Tensor normed = scratch.Take(weights.dtype(), x.shape());
  RmsNorm(pass.ctx, x, weights.view(pass.layer.attention_norm), config.rms_norm_epsilon, normed,
          rstd);
  pass.Observe(StoredPass::kForward, StoredKind::kAttentionNorm, normed);
  const Tensor qkv =
      scratch.Take(weights.dtype(), {tokens, config.q_width() + 2 * config.kv_width()});
  Linear(pass.ctx, normed, weights.linear(pass.layer.qkv, pass.layer.qkv_bias), qkv);
  const std::array<Tensor, 3> parts = {heads.q_raw, heads.k_raw,
                                       heads.v.Reshape({tokens, config.kv_width()})};
  SplitColumns(pass.ctx, qkv, parts);
  pass.Observe(StoredPass::kForward, StoredKind::kQuery, heads.q_raw);
  pass.Observe(StoredPass::kForward, StoredKind::kKey, heads.k_raw);
  pass.Observe(StoredPass::kForward, StoredKind::kValue, heads.v);

  if (config.qk_norm) {
    const auto norm = [&](ConstTensor raw, int64_t count, int weight, Tensor y, Tensor rstd_heads) {
      const Shape rows = {tokens * count, config.head_dim};
      RmsNorm(pass.ctx, raw.Reshape(rows), weights.view(weight), config.rms_norm_epsilon,
              y.Reshape(rows), rstd_heads);
    };
    norm(heads.q_raw, config.heads, pass.layer.q_norm, heads.q, heads.rstd_q);
    norm(heads.k_raw, config.kv_heads, pass.layer.k_norm, heads.k, heads.rstd_k);
    pass.Observe(StoredPass::kForward, StoredKind::kQuery, heads.q);
    pass.Observe(StoredPass::kForward, StoredKind::kKey, heads.k);
  }
  Rope(pass.ctx, heads.q, pass.positions, weights.rope_table(), heads.q);
  Rope(pass.ctx, heads.k, pass.positions, weights.rope_table(), heads.k);
  pass.Observe(StoredPass::kForward, StoredKind::kQuery, heads.q);
  pass.Observe(StoredPass::kForward, StoredKind::kKey, heads.k);
}

void ForwardAttentionOut(const LayerPass& pass, ConstTensor attention, ConstTensor residual,
                         Tensor mid) {
  Linear(pass.ctx, attention,
         pass.weights.linear(pass.layer.attention_out, pass.layer.attention_out_bias), mid);
  pass.Observe(StoredPass::kForward, StoredKind::kAttentionOutput, mid);
  Add(pass.ctx, residual, mid, Overflow::kSaturate, mid);
  pass.Observe(StoredPass::kForward, StoredKind::kAttentionResidual, mid);
}

void ForwardGateUp(const LayerPass& pass, ConstTensor mid, Tensor rstd, Tensor gate_up) {
  Workspace::Scope scratch(pass.ctx.workspace);
  const Tensor normed = scratch.Take(pass.weights.dtype(), mid.shape());
  RmsNorm(pass.ctx, mid, pass.weights.view(pass.layer.mlp_norm), pass.config().rms_norm_epsilon,
          normed, rstd);
  pass.Observe(StoredPass::kForward, StoredKind::kMlpNorm, normed);
  Linear(pass.ctx, normed, pass.weights.linear(pass.layer.gate_up, pass.layer.gate_up_bias),
         gate_up);
  pass.Observe(StoredPass::kForward, StoredKind::kGateUp, gate_up);
}

void ForwardDown(const LayerPass& pass, ConstTensor gate_up, ConstTensor mid, Tensor output) {
  Workspace::Scope scratch(pass.ctx.workspace);
  const Tensor activation =
      scratch.Take(pass.weights.dtype(), {mid.dim(0), pass.config().intermediate_size});
  SwiGlu(pass.ctx, gate_up, activation);
  pass.Observe(StoredPass::kForward, StoredKind::kActivation, activation);
  Linear(pass.ctx, activation, pass.weights.linear(pass.layer.down, pass.layer.down_bias), output);
  pass.Observe(StoredPass::kForward, StoredKind::kMlpOutput, output);
  Add(pass.ctx, mid, output, Overflow::kSaturate, output);
  pass.Observe(StoredPass::kForward, StoredKind::kMlpResidual, output);
}

}  // namespace halfstep
