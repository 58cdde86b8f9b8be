// SPDX-License-Identifier: Apache-2.0
// The manual backward: each function undoes one of transformer_layer.cc, in reverse order.
// Activation gradients are stored in the dtype, those of the residual stream in that of the stream,
// and may become Inf, which the loss scaler looks for.
#include <array>
#include <optional>

#include "common/model/train_activations.h"
#include "common/model/transformer.h"
#include "common/model/transformer_layer.h"
#include "kernels/check.h"
#include "kernels/ops/activation.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/elementwise.h"
#include "kernels/ops/embedding.h"
#include "kernels/ops/norm.h"
#include "kernels/ops/rope.h"
#include "kernels/workspace.h"

namespace halfstep {
namespace {

// A layer's pass with where its parameter gradients go.
struct BackwardPass {
  LayerPass forward;
  ModelGradients* gradients;

  const ExecContext& ctx() const { return forward.ctx; }
  const ModelConfig& config() const { return forward.config(); }
  DType dtype() const { return forward.weights.dtype(); }
  Tensor gradient(int parameter) const {
    return parameter < 0 ? Tensor() : gradients->view(parameter);
  }
  void Observe(StoredKind kind, ConstTensor values) const {
    forward.Observe(StoredPass::kBackward, kind, values);
  }
};

// dmid: [rows, hidden], overwritten; dout: the gradient of the layer's output.
void BackwardMlp(const BackwardPass& pass, const LayerActivations& saved, ConstTensor dout,
                 Tensor dmid) {
  const ExecContext& ctx = pass.ctx();
  const LayerParameters& layer = pass.forward.layer;
  const ModelWeights& weights = pass.forward.weights;
  Workspace::Scope scratch(ctx.workspace);

  const Tensor dgate_up = scratch.Take(pass.dtype(), saved.gate_up.shape());
  {
    Workspace::Scope inner(ctx.workspace);
    const Shape width = {dout.dim(0), pass.config().intermediate_size};
    const Tensor activation = inner.Take(pass.dtype(), width);
    SwiGlu(ctx, saved.gate_up, activation);
    LinearBackwardWeight(ctx, dout, activation, pass.gradient(layer.down),
                         pass.gradient(layer.down_bias));
    const Tensor dactivation = activation;  // its values are no longer needed
    LinearBackwardInput(ctx, dout, weights.linear(layer.down), dactivation);
    pass.Observe(StoredKind::kActivation, dactivation);
    SwiGluBackward(ctx, dactivation, saved.gate_up, dgate_up);
    pass.Observe(StoredKind::kGateUp, dgate_up);
  }
  const Tensor normed = scratch.Take(pass.dtype(), saved.mid.shape());
  RmsNorm(ctx, saved.mid, weights.view(layer.mlp_norm), pass.config().rms_norm_epsilon, normed,
          Tensor());
  LinearBackwardWeight(ctx, dgate_up, normed, pass.gradient(layer.gate_up),
                       pass.gradient(layer.gate_up_bias));
  const Tensor dnormed = normed;  // its values are no longer needed
  LinearBackwardInput(ctx, dgate_up, weights.linear(layer.gate_up), dnormed);
  pass.Observe(StoredKind::kMlpNorm, dnormed);
  RmsNormBackward(ctx, dnormed, saved.mid, weights.view(layer.mlp_norm), saved.rstd_mlp, dmid,
                  pass.gradient(layer.mlp_norm));
  Add(ctx, dout, dmid, Overflow::kInfinity, dmid);
  pass.Observe(StoredKind::kAttentionResidual, dmid);
}

// From the gradients of rotated q, k and of v (overwritten) to that of the layer's input, dx.
// dresidual: what reached the input around the attention; not the memory of dx.
void BackwardHeads(const BackwardPass& pass, const LayerActivations& saved, ConstTensor x,
                   const HeadTensors& d, ConstTensor dresidual, Tensor dx) {
  const ExecContext& ctx = pass.ctx();
  const ModelConfig& config = pass.config();
  const LayerParameters& layer = pass.forward.layer;
  const ModelWeights& weights = pass.forward.weights;
  const int64_t tokens = x.dim(0);
  Workspace::Scope scratch(ctx.workspace);

  RopeBackward(ctx, d.q, pass.forward.positions, weights.rope_table(), d.q);
  RopeBackward(ctx, d.k, pass.forward.positions, weights.rope_table(), d.k);
  if (config.qk_norm) {
    const auto norm = [&](Tensor dy, ConstTensor raw, ConstTensor rstd, int64_t count, int weight) {
      const Shape rows = {tokens * count, config.head_dim};
      RmsNormBackward(ctx, dy.Reshape(rows), raw.Reshape(rows), weights.view(weight), rstd,
                      dy.Reshape(rows), pass.gradient(weight));
    };
    norm(d.q, saved.heads.q_raw, saved.heads.rstd_q, config.heads, layer.q_norm);
    norm(d.k, saved.heads.k_raw, saved.heads.rstd_k, config.kv_heads, layer.k_norm);
  }
  const Tensor dqkv =
      scratch.Take(pass.dtype(), {tokens, config.q_width() + 2 * config.kv_width()});
  const std::array<ConstTensor, 3> parts = {d.q.Reshape({tokens, config.q_width()}),
                                            d.k.Reshape({tokens, config.kv_width()}),
                                            d.v.Reshape({tokens, config.kv_width()})};
  pass.Observe(StoredKind::kQuery, d.q);
  pass.Observe(StoredKind::kKey, d.k);
  pass.Observe(StoredKind::kValue, d.v);
  ConcatColumns(ctx, parts, dqkv);

  const Tensor normed = scratch.Take(pass.dtype(), x.shape());
  RmsNorm(ctx, x, weights.view(layer.attention_norm), config.rms_norm_epsilon, normed, Tensor());
  LinearBackwardWeight(ctx, dqkv, normed, pass.gradient(layer.qkv), pass.gradient(layer.qkv_bias));
  const Tensor dnormed = normed;  // its values are no longer needed
  LinearBackwardInput(ctx, dqkv, weights.linear(layer.qkv), dnormed);
  pass.Observe(StoredKind::kAttentionNorm, dnormed);
  RmsNormBackward(ctx, dnormed, x, weights.view(layer.attention_norm), saved.rstd_attention, dx,
                  pass.gradient(layer.attention_norm));
  Add(ctx, dresidual, dx, Overflow::kInfinity, dx);
}

// dmid: [rows, hidden]; dx: [tokens, hidden], overwritten, not the memory of dmid.
void BackwardAttention(const BackwardPass& pass, const LayerActivations& saved,
                       const PackedIndices& indices, ConstTensor x, ConstTensor dmid, Tensor dx) {
  const ExecContext& ctx = pass.ctx();
  const ModelConfig& config = pass.config();
  const LayerParameters& layer = pass.forward.layer;
  const int64_t tokens = x.dim(0);
  const bool all_rows = dmid.dim(0) == tokens;
  const ConstTensor rows = indices.logit_rows;
  Workspace::Scope scratch(ctx.workspace);

  const ConstTensor attention = saved.attention.Reshape({tokens, config.q_width()});
  Tensor dattention = scratch.Take(pass.dtype(), attention.shape());
  ConstTensor dresidual = dmid;
  const LinearWeight out = pass.forward.weights.linear(layer.attention_out);
  if (all_rows) {
    LinearBackwardWeight(ctx, dmid, attention, pass.gradient(layer.attention_out),
                         pass.gradient(layer.attention_out_bias));
    LinearBackwardInput(ctx, dmid, out, dattention);
  } else {
    const Tensor residual_rows = scratch.Take(x.dtype(), x.shape());
    Workspace::Scope inner(ctx.workspace);
    const Tensor gathered = inner.Take(pass.dtype(), {dmid.dim(0), config.q_width()});
    GatherRows(ctx, attention, rows, gathered);
    LinearBackwardWeight(ctx, dmid, gathered, pass.gradient(layer.attention_out),
                         pass.gradient(layer.attention_out_bias));
    LinearBackwardInput(ctx, dmid, out, gathered);
    ScatterRows(ctx, gathered, rows, dattention);
    ScatterRows(ctx, dmid, rows, residual_rows);
    dresidual = residual_rows;
  }

  HeadTensors d;
  d.q = scratch.Take(pass.dtype(), saved.heads.q.shape());
  d.k = scratch.Take(pass.dtype(), saved.heads.k.shape());
  d.v = scratch.Take(pass.dtype(), saved.heads.v.shape());
  CausalAttentionBackward(ctx, dattention.Reshape(saved.heads.q.shape()),
                          PackedAttentionOf(config, saved.heads, indices), saved.attention,
                          saved.lse, d.q, d.k, d.v);
  pass.Observe(StoredKind::kAttention, dattention);
  pass.Observe(StoredKind::kQuery, d.q);
  pass.Observe(StoredKind::kKey, d.k);
  BackwardHeads(pass, saved, x, d, dresidual, dx);
}

}  // namespace

void Transformer::Backward(const ExecContext& caller_ctx, const ModelWeights& weights,
                           const PackedBatch& batch, const TrainActivations& activations,
                           ConstTensor dhidden, ModelGradients* gradients) const {
  const TrainActivations::Impl& saved = *activations.impl_;
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  const auto rows = static_cast<int64_t>(batch.logit_rows.size());
  const ParameterLayout& layout = weights.parameters().layout();
  HALFSTEP_CHECK_EQ(dhidden.shape(), (Shape{rows, config_.hidden_size}));
  HALFSTEP_CHECK_EQ(saved.final_input.shape(), (Shape{rows, config_.hidden_size}));
  HALFSTEP_CHECK_EQ(saved.inputs[0].dim(0), tokens);
  HALFSTEP_CHECK(saved.inputs[0].dtype() == fp32_.residual_dtype(weights.dtype()));
  HALFSTEP_CHECK(dhidden.dtype() == fp32_.hidden_dtype(weights.dtype()));
  if (rows == 0) return;

  // Whatever is recomputed here saturates where the forward did, which has counted it.
  ExecContext ctx = caller_ctx;
  ctx.saturated_stores = nullptr;

  Workspace::Scope scratch(ctx.workspace);
  const PackedIndices indices = IndicesOf(ctx, batch, &scratch);
  const DType residual = fp32_.residual_dtype(weights.dtype());
  const Tensor buffer = scratch.Take(residual, {tokens, config_.hidden_size});
  const Tensor dmid_buffer = scratch.Take(residual, {tokens, config_.hidden_size});
  Tensor dx = buffer.Rows(0, rows);  // the gradient of the current layer's output
  RmsNormBackward(ctx, dhidden, saved.final_input, weights.view(layout.final_norm()),
                  saved.final_rstd, dx, gradients->view(layout.final_norm()));
  if (observer_ != nullptr) {
    observer_->Observe(StoredPass::kBackward, StoredKind::kFinalNorm, config_.layers, dhidden);
  }
  for (int64_t i = config_.layers - 1; i >= 0; --i) {
    const LayerParameters& parameters = layout.layers()[i];
    const BackwardPass pass = {{ctx, weights, parameters, indices.positions, i, observer_},
                               gradients};
    Workspace::Scope layer_scratch(ctx.workspace);
    LayerActivations layer;
    if (saved.recompute == Recompute::kNone) {
      layer = saved.layers[i];
    } else {
      layer = TakeLayerActivations(
          config_, DTypesFor(weights), tokens, dx.dim(0),
          [&](DType dtype, Shape shape) { return layer_scratch.Take(dtype, shape); });
      ForwardLayerForTraining({ctx, weights, parameters, indices.positions}, indices,
                              saved.inputs[i], layer);
    }
    pass.Observe(StoredKind::kMlpResidual, dx);
    const Tensor dmid = dmid_buffer.Rows(0, dx.dim(0));
    BackwardMlp(pass, layer, dx, dmid);
    dx = buffer;
    BackwardAttention(pass, layer, indices, saved.inputs[i], dmid, dx);
  }
  if (observer_ != nullptr) {
    observer_->Observe(StoredPass::kBackward, StoredKind::kEmbedding, 0, dx);
  }
  EmbeddingBackward(ctx, dx, indices.tokens, gradients->embedding());
}

}  // namespace halfstep
