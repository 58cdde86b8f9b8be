// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation/model_runner.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "kernels/check.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/elementwise.h"
#include "kernels/ops/linear.h"

namespace halfstep {
namespace {

// FP32 logits kept at once; above it the LM head and sampling go over the rows in chunks.
constexpr int64_t kLogitBytes = int64_t{32} << 20;

int64_t LogitChunk(const ModelRunnerOptions& options) {
  const int64_t rows = kLogitBytes / (options.config.vocab_size * int64_t{sizeof(float)});
  return std::clamp(rows, std::min<int64_t>(16, options.max_draws), options.max_draws);
}

}  // namespace

ModelRunner::ModelRunner(const ModelRunnerOptions& options, const ExecContext& ctx)
    : config_(options.config),
      ctx_(ctx),
      transformer_(options.config, options.fp32),
      cache_(options.config, options.dtype, options.kv_blocks, ctx.device),
      hidden_("generation.hidden", options.fp32.hidden_dtype(options.dtype),
              {options.max_draws, options.config.hidden_size}, ctx.device),
      draw_hidden_("generation.draw_hidden", options.fp32.hidden_dtype(options.dtype),
                   {options.max_draws, options.config.hidden_size}, ctx.device),
      logit_chunk_(LogitChunk(options)),
      tokens_("generation.tokens", options.max_draws, ctx.device),
      log_probs_("generation.log_probs", options.max_draws, ctx.device) {
  logits_ = OwnedTensor("generation.logits", DType::kFloat32,
                        {logit_chunk_, options.config.vocab_size}, ctx.device);
  for (auto* vector : {&batch_.tokens, &batch_.positions, &batch_.slots}) {
    vector->reserve(options.max_step_tokens);
  }
  rows_.reserve(options.max_draws);
}

void ModelRunner::Run(const StepPlan& plan, const ModelWeights& weights,
                      const std::function<const Sequence&(SequenceId)>& sequence) {
  const absl::Time start = absl::Now();
  BuildBatch(plan, sequence);
  const absl::Time built = absl::Now();
  const auto rows = static_cast<int64_t>(batch_.logit_rows.size());
  transformer_.ForwardInfer(ctx_, weights, batch_, &cache_, hidden_.view().Rows(0, rows));
  const absl::Time passed = absl::Now();
  CopyBlocks(plan);
  const absl::Time copied = absl::Now();
  Draw(plan, weights, sequence);
  const absl::Time drawn = absl::Now();
  times_.prepare += (built - start) + (copied - passed);
  times_.forward += passed - built;
  times_.head += drawn - copied;
}

void ModelRunner::BuildBatch(const StepPlan& plan,
                             const std::function<const Sequence&(SequenceId)>& sequence) {
  batch_.tokens.clear();
  batch_.positions.clear();
  batch_.slots.clear();
  batch_.query_start.assign(1, 0);
  batch_.context.clear();
  batch_.logit_rows.clear();
  batch_.max_blocks = 0;
  for (const PlannedChunk& chunk : plan.chunks) {
    const int64_t blocks = (chunk.begin + chunk.count + kKvBlockTokens - 1) / kKvBlockTokens;
    batch_.max_blocks = std::max(batch_.max_blocks, blocks);
  }
  batch_.block_tables.assign(plan.chunks.size() * batch_.max_blocks, 0);

  auto draw = plan.draws.begin();
  for (size_t i = 0; i < plan.chunks.size(); ++i) {
    const PlannedChunk& chunk = plan.chunks[i];
    const Sequence& source = sequence(chunk.sequence);
    const std::vector<int32_t>& blocks = *chunk.blocks;
    for (int64_t p = chunk.begin; p < chunk.begin + chunk.count; ++p) {
      batch_.tokens.push_back(source.token(p));
      batch_.positions.push_back(static_cast<int32_t>(p));
      batch_.slots.push_back(
          static_cast<int32_t>(blocks[p / kKvBlockTokens] * kKvBlockTokens + p % kKvBlockTokens));
    }
    batch_.query_start.push_back(static_cast<int32_t>(batch_.tokens.size()));
    batch_.context.push_back(static_cast<int32_t>(chunk.begin + chunk.count));
    const int64_t used = (chunk.begin + chunk.count + kKvBlockTokens - 1) / kKvBlockTokens;
    std::copy_n(blocks.begin(), used, batch_.block_tables.begin() + i * batch_.max_blocks);
    if (draw != plan.draws.end() && draw->chunk == static_cast<int64_t>(i)) {
      batch_.logit_rows.push_back(batch_.query_start.back() - 1);
      while (draw != plan.draws.end() && draw->chunk == static_cast<int64_t>(i)) ++draw;
    }
  }
}

void ModelRunner::CopyBlocks(const StepPlan& plan) {
  for (const BlockCopy& copy : plan.copies) {
    for (int64_t layer = 0; layer < config_.layers; ++layer) {
      const KvCacheLayer& cache = cache_.layer(layer);
      Copy(ctx_, cache.keys.Rows(copy.from, 1), cache.keys.Rows(copy.to, 1));
      Copy(ctx_, cache.values.Rows(copy.from, 1), cache.values.Rows(copy.to, 1));
    }
  }
}

ConstTensor ModelRunner::HiddenOfDraws(const StepPlan& plan) {
  const auto draws = static_cast<int64_t>(plan.draws.size());
  if (draws == static_cast<int64_t>(batch_.logit_rows.size())) return hidden_.view().Rows(0, draws);
  int64_t row = -1;
  int64_t chunk = -1;
  for (int64_t i = 0; i < draws; ++i) {
    if (plan.draws[i].chunk != chunk) {
      chunk = plan.draws[i].chunk;
      ++row;
    }
    Copy(ctx_, hidden_.view().Rows(row, 1), draw_hidden_.view().Rows(i, 1));
  }
  return draw_hidden_.view().Rows(0, draws);
}

void ModelRunner::Draw(const StepPlan& plan, const ModelWeights& weights,
                       const std::function<const Sequence&(SequenceId)>& sequence) {
  const auto draws = static_cast<int64_t>(plan.draws.size());
  rows_.clear();
  for (const PlannedDraw& draw : plan.draws) rows_.push_back(sequence(draw.sequence).NextRow());
  if (draws == 0) return;

  const ConstTensor hidden = HiddenOfDraws(plan);
  const LinearWeight head = weights.head();
  for (int64_t begin = 0; begin < draws; begin += logit_chunk_) {
    const int64_t count = std::min(logit_chunk_, draws - begin);
    const Tensor logits = logits_.view().Rows(0, count);
    Linear(ctx_, hidden.Rows(begin, count), head, logits);
    SampleTokens(ctx_, logits, std::span<const SamplingRow>(rows_).subspan(begin, count),
                 tokens_.device(begin, count), log_probs_.device(begin, count));
  }
  tokens_.ToHost(ctx_, 0, draws);
  log_probs_.ToHost(ctx_, 0, draws);
}

}  // namespace halfstep
