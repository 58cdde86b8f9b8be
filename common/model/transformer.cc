// SPDX-License-Identifier: Apache-2.0
// The two forward passes.
#include "common/model/transformer.h"

#include <utility>

#include "common/model/train_activations.h"
#include "common/model/transformer_layer.h"
#include "kernels/check.h"
#include "kernels/ops/activation.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/elementwise.h"
#include "kernels/ops/embedding.h"
#include "kernels/ops/fused.h"
#include "kernels/ops/norm.h"
#include "kernels/workspace.h"

namespace halfstep {
namespace {

// The attention's out projection and residual, for the rows of `mid` only: all of them, or `rows`.
void ForwardMid(const LayerPass& pass, ConstTensor attention, ConstTensor x, ConstTensor rows,
                Tensor mid) {
  const ConstTensor flat = attention.Reshape({x.dim(0), pass.config().q_width()});
  if (mid.dim(0) == x.dim(0)) {
    ForwardAttentionOut(pass, flat, x, mid);
    return;
  }
  Workspace::Scope scratch(pass.ctx.workspace);
  const Tensor attention_rows = scratch.Take(flat.dtype(), {mid.dim(0), pass.config().q_width()});
  const Tensor x_rows = scratch.Take(x.dtype(), mid.shape());
  GatherRows(pass.ctx, flat, rows, attention_rows);
  GatherRows(pass.ctx, x, rows, x_rows);
  ForwardAttentionOut(pass, attention_rows, x_rows, mid);
}

PagedBatch PagedBatchOf(const StepIndices& indices) {
  return {indices.query_start, indices.context, indices.block_tables};
}

// One layer over the paged cache. output: [tokens or logit rows, hidden].
void ForwardLayerForInference(const LayerPass& pass, const StepIndices& indices,
                              const KvCacheLayer& cache, ConstTensor x, Tensor output) {
  const ModelConfig& config = pass.config();
  const DType dtype = pass.weights.dtype();
  const int64_t tokens = x.dim(0);
  const int64_t rows = output.dim(0);
  Workspace::Scope scratch(pass.ctx.workspace);

  HeadTensors heads;
  heads.q = scratch.Take(dtype, {tokens, config.heads, config.head_dim});
  heads.k = scratch.Take(dtype, {tokens, config.kv_heads, config.head_dim});
  heads.v = scratch.Take(dtype, {tokens, config.kv_heads, config.head_dim});
  heads.q_raw = heads.q.Reshape({tokens, config.q_width()});
  heads.k_raw = heads.k.Reshape({tokens, config.kv_width()});
  ForwardHeads(pass, x, Tensor(), heads);
  WriteKvCache(pass.ctx, heads.k, heads.v, indices.slots, cache);
  if (rows == 0) return;  // a prefill chunk of which nothing but the cache is wanted

  const Tensor attention = scratch.Take(dtype, heads.q.shape());
  PagedCausalAttention(pass.ctx, heads.q, cache, PagedBatchOf(indices), ScoreScale(config),
                       attention);

  const Tensor mid = scratch.Take(x.dtype(), output.shape());
  ForwardMid(pass, attention, x, indices.logit_rows, mid);
  const Tensor gate_up = scratch.Take(dtype, {rows, 2 * config.intermediate_size});
  ForwardGateUp(pass, mid, Tensor(), gate_up);
  ForwardDown(pass, gate_up, mid, output);
}

// x W^T + b of some layer, unrounded.
Tensor Project(const LayerPass& pass, Workspace::Scope* scratch, ConstTensor x, int weight,
               int bias) {
  const LinearWeight linear = pass.weights.linear(weight, bias);
  const Tensor y = scratch->Take(DType::kFloat32, {x.dim(0), linear.weight.dim(0)});
  Linear(pass.ctx, x, linear, y);
  return y;
}

// The residual stream between two layers, [tokens or logit rows, hidden], and what the next layer's
// first norm made of it before it was rounded. The stream may be FP32; so may what the final norm
// makes.
struct FastStream {
  Tensor x;
  Tensor normed;

  FastStream Rows(int64_t rows) const { return {x.Rows(0, rows), normed.Rows(0, rows)}; }
};

// The same layer for the fast profile: products stay FP32 until the operation after them, which is
// fused with whatever rounds next (kernels/ops/fused.h). `next_norm` is the norm that the layer's
// output meets first.
void ForwardLayerFast(const LayerPass& pass, const StepIndices& indices, const KvCacheLayer& cache,
                      int next_norm, const FastStream& in, const FastStream& out) {
  const ModelConfig& config = pass.config();
  const DType dtype = pass.weights.dtype();
  const int64_t tokens = in.x.dim(0);
  const int64_t rows = out.x.dim(0);
  const auto norm_weight = [&](int parameter) { return pass.weights.view(parameter); };
  Workspace::Scope scratch(pass.ctx.workspace);

  const Tensor q = scratch.Take(dtype, {tokens, config.heads, config.head_dim});
  const Tensor k = scratch.Take(dtype, {tokens, config.kv_heads, config.head_dim});
  const Tensor v = scratch.Take(dtype, k.shape());
  ProjectedHeads heads;
  heads.qkv = Project(pass, &scratch, in.normed, pass.layer.qkv, pass.layer.qkv_bias);
  if (config.qk_norm) {
    heads.q_norm = norm_weight(pass.layer.q_norm);
    heads.k_norm = norm_weight(pass.layer.k_norm);
  }
  heads.epsilon = config.rms_norm_epsilon;
  heads.positions = pass.positions;
  heads.rope_table = pass.weights.rope_table();
  FinishHeads(pass.ctx, heads, q, k, v);
  WriteKvCache(pass.ctx, k, v, indices.slots, cache);
  if (rows == 0) return;

  const Tensor attended = scratch.Take(dtype, q.shape());
  PagedCausalAttention(pass.ctx, q, cache, PagedBatchOf(indices), ScoreScale(config), attended);
  ConstTensor attention = attended.Reshape({tokens, config.q_width()});
  ConstTensor x = in.x;
  if (rows != tokens) {
    const Tensor attention_rows = scratch.Take(dtype, {rows, config.q_width()});
    const Tensor x_rows = scratch.Take(x.dtype(), out.x.shape());
    GatherRows(pass.ctx, attention, indices.logit_rows, attention_rows);
    GatherRows(pass.ctx, x, indices.logit_rows, x_rows);
    attention = attention_rows;
    x = x_rows;
  }

  const Tensor mid = scratch.Take(x.dtype(), out.x.shape());
  const Tensor mid_normed = scratch.Take(dtype, out.x.shape());
  AddRmsNorm(
      pass.ctx, x,
      Project(pass, &scratch, attention, pass.layer.attention_out, pass.layer.attention_out_bias),
      norm_weight(pass.layer.mlp_norm), config.rms_norm_epsilon, mid, mid_normed);
  const Tensor activation = scratch.Take(dtype, {rows, config.intermediate_size});
  SwiGlu(pass.ctx, Project(pass, &scratch, mid_normed, pass.layer.gate_up, pass.layer.gate_up_bias),
         activation);
  AddRmsNorm(pass.ctx, mid,
             Project(pass, &scratch, activation, pass.layer.down, pass.layer.down_bias),
             norm_weight(next_norm), config.rms_norm_epsilon, out.x, out.normed);
}

// residual: the dtype of the residual stream.
void ForwardInferFast(const ExecContext& ctx, const ModelWeights& weights, DType residual,
                      const StepBatch& batch, KvCache* cache, Tensor hidden) {
  const ModelConfig& config = weights.config();
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  const int64_t rows = hidden.dim(0);
  const ParameterLayout& layout = weights.parameters().layout();
  Workspace::Scope scratch(ctx.workspace);
  const StepIndices indices = IndicesOf(ctx, batch, &scratch);
  const auto take = [&](DType dtype) { return scratch.Take(dtype, {tokens, config.hidden_size}); };
  FastStream in{take(residual), take(weights.dtype())};
  FastStream out{take(residual), take(weights.dtype())};
  Embedding(ctx, indices.tokens, weights.view(layout.embedding()), in.x);
  RmsNorm(ctx, in.x, weights.view(layout.layers()[0].attention_norm), config.rms_norm_epsilon,
          in.normed, Tensor());
  for (int64_t i = 0; i < config.layers; ++i) {
    const LayerPass pass = {ctx, weights, layout.layers()[i], indices.positions};
    const bool last = i + 1 == config.layers;
    FastStream to = out.Rows(OutputRows(config, i, tokens, rows));
    if (last && rows > 0) to.normed = hidden;
    ForwardLayerFast(pass, indices, cache->layer(i),
                     last ? layout.final_norm() : layout.layers()[i + 1].attention_norm, in, to);
    std::swap(in, out);
  }
}

}  // namespace

void ForwardLayerForTraining(const LayerPass& pass, const PackedIndices& indices, ConstTensor x,
                             const LayerActivations& saved) {
  ForwardHeads(pass, x, saved.rstd_attention, saved.heads);
  CausalAttention(pass.ctx, PackedAttentionOf(pass.config(), saved.heads, indices), saved.attention,
                  saved.lse);
  pass.Observe(StoredPass::kForward, StoredKind::kAttention, saved.attention);
  ForwardMid(pass, saved.attention, x, indices.logit_rows, saved.mid);
  ForwardGateUp(pass, saved.mid, saved.rstd_mlp, saved.gate_up);
}

Transformer::Transformer(const ModelConfig& config, const Fp32Parts& fp32, TensorObserver* observer)
    : config_(config), fp32_(fp32), observer_(observer) {}

void Transformer::ForwardTrain(const ExecContext& ctx, const ModelWeights& weights,
                               const PackedBatch& batch, Recompute recompute,
                               TrainActivations* activations, Tensor hidden) const {
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  const auto rows = static_cast<int64_t>(batch.logit_rows.size());
  HALFSTEP_CHECK_EQ(batch.positions.size(), batch.tokens.size());
  HALFSTEP_CHECK_EQ(hidden.shape(), (Shape{rows, config_.hidden_size}));
  HALFSTEP_CHECK(hidden.dtype() == fp32_.hidden_dtype(weights.dtype()));
  TrainActivations::Impl& saved = *activations->impl_;
  saved.Reserve(config_, DTypesFor(weights), batch, recompute, ctx.device);
  if (rows == 0) return;
  Workspace::Scope index_scratch(ctx.workspace);
  const PackedIndices indices = IndicesOf(ctx, batch, &index_scratch);

  const ParameterLayout& layout = weights.parameters().layout();
  Embedding(ctx, indices.tokens, weights.view(layout.embedding()), saved.inputs[0]);
  const auto observe = [this](StoredKind kind, int64_t layer, ConstTensor values) {
    if (observer_ != nullptr) observer_->Observe(StoredPass::kForward, kind, layer, values);
  };
  observe(StoredKind::kEmbedding, 0, saved.inputs[0]);
  for (int64_t i = 0; i < config_.layers; ++i) {
    const LayerPass pass = {ctx, weights, layout.layers()[i], indices.positions, i, observer_};
    Workspace::Scope scratch(ctx.workspace);
    const LayerActivations layer =
        recompute == Recompute::kNone
            ? saved.layers[i]
            : TakeLayerActivations(
                  config_, DTypesFor(weights), tokens, OutputRows(config_, i, tokens, rows),
                  [&](DType dtype, Shape shape) { return scratch.Take(dtype, shape); });
    const Tensor output = i + 1 < config_.layers ? saved.inputs[i + 1] : saved.final_input;
    ForwardLayerForTraining(pass, indices, saved.inputs[i], layer);
    ForwardDown(pass, layer.gate_up, layer.mid, output);
  }
  RmsNorm(ctx, saved.final_input, weights.view(layout.final_norm()), config_.rms_norm_epsilon,
          hidden, saved.final_rstd);
  observe(StoredKind::kFinalNorm, config_.layers, hidden);
}

void Transformer::ForwardInfer(const ExecContext& ctx, const ModelWeights& weights,
                               const StepBatch& batch, KvCache* cache, Tensor hidden) const {
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  const auto rows = static_cast<int64_t>(batch.logit_rows.size());
  HALFSTEP_CHECK_EQ(batch.positions.size(), batch.tokens.size());
  HALFSTEP_CHECK_EQ(batch.slots.size(), batch.tokens.size());
  HALFSTEP_CHECK_EQ(hidden.shape(), (Shape{rows, config_.hidden_size}));
  HALFSTEP_CHECK(hidden.dtype() == fp32_.hidden_dtype(weights.dtype()));
  const DType residual = fp32_.residual_dtype(weights.dtype());
  if (ctx.profile == Profile::kFast) {
    return ForwardInferFast(ctx, weights, residual, batch, cache, hidden);
  }
  const ParameterLayout& layout = weights.parameters().layout();
  Workspace::Scope scratch(ctx.workspace);
  const StepIndices indices = IndicesOf(ctx, batch, &scratch);

  // Two buffers in turn: a layer reads one and writes the other.
  Tensor x = scratch.Take(residual, {tokens, config_.hidden_size});
  Tensor y = scratch.Take(residual, {tokens, config_.hidden_size});
  Embedding(ctx, indices.tokens, weights.view(layout.embedding()), x);
  for (int64_t i = 0; i < config_.layers; ++i) {
    const LayerPass pass = {ctx, weights, layout.layers()[i], indices.positions};
    const Tensor output = y.Rows(0, OutputRows(config_, i, tokens, rows));
    ForwardLayerForInference(pass, indices, cache->layer(i), x, output);
    std::swap(x, y);
  }
  if (rows == 0) return;
  RmsNorm(ctx, x.Rows(0, rows), weights.view(layout.final_norm()), config_.rms_norm_epsilon, hidden,
          Tensor());
}

}  // namespace halfstep
