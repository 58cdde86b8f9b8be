// SPDX-License-Identifier: Apache-2.0
// The two forward passes.
#include "common/model/transformer.h"

#include <utility>

#include "common/model/train_activations.h"
#include "common/model/transformer_layer.h"
#include "kernels/check.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/elementwise.h"
#include "kernels/ops/embedding.h"
#include "kernels/ops/norm.h"
#include "kernels/workspace.h"

namespace halfstep {
namespace {

// The attention's out projection and residual, for the rows of `mid` only: all of them, or `rows`.
void ForwardMid(const LayerPass& pass, ConstTensor attention, ConstTensor x,
                const std::vector<int32_t>& rows, Tensor mid) {
  const ConstTensor flat = attention.Reshape({x.dim(0), pass.config().q_width()});
  if (mid.dim(0) == x.dim(0)) {
    ForwardAttentionOut(pass, flat, x, mid);
    return;
  }
  Workspace::Scope scratch(pass.ctx.workspace);
  const Tensor attention_rows = scratch.Take(flat.dtype(), {mid.dim(0), pass.config().q_width()});
  const Tensor x_rows = scratch.Take(x.dtype(), mid.shape());
  GatherRows(pass.ctx, flat, IndexView(rows), attention_rows);
  GatherRows(pass.ctx, x, IndexView(rows), x_rows);
  ForwardAttentionOut(pass, attention_rows, x_rows, mid);
}

// One layer over the paged cache. output: [tokens or logit rows, hidden].
void ForwardLayerForInference(const LayerPass& pass, const StepBatch& batch,
                              const KvCacheLayer& cache, ConstTensor x, Tensor output) {
  const ModelConfig& config = pass.config();
  const DType dtype = pass.weights.dtype();
  const int64_t tokens = x.dim(0);
  const int64_t rows = output.dim(0);
  const auto sequences = static_cast<int64_t>(batch.context.size());
  Workspace::Scope scratch(pass.ctx.workspace);

  HeadTensors heads;
  heads.q = scratch.Take(dtype, {tokens, config.heads, config.head_dim});
  heads.k = scratch.Take(dtype, {tokens, config.kv_heads, config.head_dim});
  heads.v = scratch.Take(dtype, {tokens, config.kv_heads, config.head_dim});
  heads.q_raw = heads.q.Reshape({tokens, config.q_width()});
  heads.k_raw = heads.k.Reshape({tokens, config.kv_width()});
  ForwardHeads(pass, x, Tensor(), heads);
  WriteKvCache(pass.ctx, heads.k, heads.v, IndexView(batch.slots), cache);
  if (rows == 0) return;  // a prefill chunk of which nothing but the cache is wanted

  const Tensor attention = scratch.Take(dtype, heads.q.shape());
  const PagedBatch paged = {IndexView(batch.query_start), IndexView(batch.context),
                            IndexView(batch.block_tables).Reshape({sequences, batch.max_blocks})};
  PagedCausalAttention(pass.ctx, heads.q, cache, paged, ScoreScale(config), attention);

  const Tensor mid = scratch.Take(dtype, output.shape());
  ForwardMid(pass, attention, x, batch.logit_rows, mid);
  const Tensor gate_up = scratch.Take(dtype, {rows, 2 * config.intermediate_size});
  ForwardGateUp(pass, mid, Tensor(), gate_up);
  ForwardDown(pass, gate_up, mid, output);
}

}  // namespace

void ForwardLayerForTraining(const LayerPass& pass, const PackedBatch& batch, ConstTensor x,
                             const LayerActivations& saved) {
  ForwardHeads(pass, x, saved.rstd_attention, saved.heads);
  CausalAttention(pass.ctx, PackedAttentionOf(pass.config(), saved.heads, batch), saved.attention,
                  saved.lse);
  pass.Observe(StoredPass::kForward, StoredKind::kAttention, saved.attention);
  ForwardMid(pass, saved.attention, x, batch.logit_rows, saved.mid);
  ForwardGateUp(pass, saved.mid, saved.rstd_mlp, saved.gate_up);
}

Transformer::Transformer(const ModelConfig& config, TensorObserver* observer)
    : config_(config), observer_(observer) {}

void Transformer::ForwardTrain(const ExecContext& ctx, const ModelWeights& weights,
                               const PackedBatch& batch, Recompute recompute,
                               TrainActivations* activations, Tensor hidden) const {
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  const auto rows = static_cast<int64_t>(batch.logit_rows.size());
  HALFSTEP_CHECK_EQ(batch.positions.size(), batch.tokens.size());
  HALFSTEP_CHECK_EQ(hidden.shape(), (Shape{rows, config_.hidden_size}));
  TrainActivations::Impl& saved = *activations->impl_;
  saved.Reserve(config_, weights.dtype(), batch, recompute);
  if (rows == 0) return;

  const ParameterLayout& layout = weights.parameters().layout();
  Embedding(ctx, IndexView(batch.tokens), weights.view(layout.embedding()), saved.inputs[0]);
  const auto observe = [this](StoredKind kind, int64_t layer, ConstTensor values) {
    if (observer_ != nullptr) observer_->Observe(StoredPass::kForward, kind, layer, values);
  };
  observe(StoredKind::kEmbedding, 0, saved.inputs[0]);
  for (int64_t i = 0; i < config_.layers; ++i) {
    const LayerPass pass = {ctx, weights,  layout.layers()[i], IndexView(batch.positions),
                            i,   observer_};
    Workspace::Scope scratch(ctx.workspace);
    const LayerActivations layer =
        recompute == Recompute::kNone
            ? saved.layers[i]
            : TakeLayerActivations(
                  config_, weights.dtype(), tokens, OutputRows(config_, i, tokens, rows),
                  [&](DType dtype, Shape shape) { return scratch.Take(dtype, shape); });
    const Tensor output = i + 1 < config_.layers ? saved.inputs[i + 1] : saved.final_input;
    ForwardLayerForTraining(pass, batch, saved.inputs[i], layer);
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
  const ParameterLayout& layout = weights.parameters().layout();
  Workspace::Scope scratch(ctx.workspace);

  // Two buffers in turn: a layer reads one and writes the other.
  Tensor x = scratch.Take(weights.dtype(), {tokens, config_.hidden_size});
  Tensor y = scratch.Take(weights.dtype(), {tokens, config_.hidden_size});
  Embedding(ctx, IndexView(batch.tokens), weights.view(layout.embedding()), x);
  for (int64_t i = 0; i < config_.layers; ++i) {
    const LayerPass pass = {ctx, weights, layout.layers()[i], IndexView(batch.positions)};
    const Tensor output = y.Rows(0, OutputRows(config_, i, tokens, rows));
    ForwardLayerForInference(pass, batch, cache->layer(i), x, output);
    std::swap(x, y);
  }
  if (rows == 0) return;
  RmsNorm(ctx, x.Rows(0, rows), weights.view(layout.final_norm()), config_.rms_norm_epsilon, hidden,
          Tensor());
}

}  // namespace halfstep
