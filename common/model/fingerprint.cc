// SPDX-License-Identifier: Apache-2.0
#include "common/model/fingerprint.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "common/base/digest.h"
#include "common/model/batch_indices.h"
#include "common/model/transformer.h"
#include "kernels/host_copy.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/elementwise.h"
#include "kernels/ops/log_prob.h"
#include "kernels/ops/sampling.h"
#include "kernels/philox.h"
#include "kernels/stream.h"

namespace halfstep {
namespace {

constexpr uint32_t kSeed = 20250131;
constexpr float kTemperature = 0.75f;
// More than two cache blocks, exactly one, and less than one.
constexpr int64_t kLengths[] = {75, 32, 9};
// The inference pass computes at most this many tokens of a sequence at once.
constexpr int64_t kChunk = 41;

// Tied embeddings and norms per head.
ModelConfig NormedConfig() {
  ModelConfig config;
  config.architecture = Architecture::kQwen3;
  config.vocab_size = 101;
  config.hidden_size = 80;
  config.intermediate_size = 112;
  config.layers = 2;
  config.heads = 6;
  config.kv_heads = 2;
  config.head_dim = 32;
  config.max_positions = 128;
  config.tie_word_embeddings = true;
  config.qk_norm = true;
  return config;
}

// Biases everywhere and a head of its own.
ModelConfig BiasedConfig() {
  ModelConfig config = NormedConfig();
  config.architecture = Architecture::kLlama;
  config.heads = 4;
  config.kv_heads = 4;
  config.head_dim = 16;
  config.tie_word_embeddings = false;
  config.qk_norm = false;
  config.qkv_bias = config.output_bias = config.mlp_bias = true;
  return config;
}

// Uniform in (-1, 1): made without the mathematics library, so that it is the same everywhere.
float FixedValue(uint32_t tensor, int64_t element) {
  const auto words = Philox4x32({{static_cast<uint32_t>(element), tensor, 0, 0}}, {{kSeed, 0}});
  return 2 * UniformFromBits(words[0]) - 1;
}

std::vector<float> FixedValues(uint32_t tensor, int64_t count, float scale, float offset) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = offset + scale * FixedValue(tensor, i);
  return values;
}

OwnedTensor OnDevice(const ExecContext& ctx, const std::vector<float>& values, const Shape& shape) {
  OwnedTensor tensor("fingerprint.values", DType::kFloat32, shape, ctx.device);
  CopyAndWait(ConstTensor(values.data(), DType::kFloat32, shape), tensor);
  return tensor;
}

ModelWeights FixedWeights(const ExecContext& ctx, const ModelConfig& config, DType dtype) {
  auto layout = std::make_shared<const ParameterLayout>(config);
  ModelWeights weights(config, layout, dtype, config.max_positions, ctx.device);
  for (size_t i = 0; i < layout->specs().size(); ++i) {
    const Tensor view = weights.parameters().view(static_cast<int>(i));
    // Norms around 1; matrices large enough that attention is far from uniform.
    const bool vector = view.rank() == 1;
    const std::vector<float> values = FixedValues(static_cast<uint32_t>(i), view.elements(),
                                                  vector ? 0.5f : 0.3f, vector ? 1.0f : 0.0f);
    Cast(ctx, OnDevice(ctx, values, view.shape()), Overflow::kSaturate, view);
  }
  // The learner's table is sent with its weights, so how this machine would compute one says
  // nothing.
  const Tensor table = weights.rope_table();
  const std::vector<float> angles = FixedValues(1000, table.elements(), 1.0f, 0.0f);
  CopyAndWait(ConstTensor(angles.data(), DType::kFloat32, table.shape()), table);
  weights.Pack(ctx);
  return weights;
}

int32_t TokenAt(int64_t sequence, int64_t position) {
  return static_cast<int32_t>((sequence * 37 + position * position * 5 + position * 11) % 101);
}

PackedBatch TrainBatch() {
  PackedBatch batch;
  batch.cu_seqlens.push_back(0);
  for (int64_t s = 0; s < std::ssize(kLengths); ++s) {
    for (int64_t p = 0; p < kLengths[s]; ++p) {
      batch.logit_rows.push_back(static_cast<int32_t>(batch.tokens.size()));
      batch.targets.push_back(TokenAt(s, p + 1));
      batch.tokens.push_back(TokenAt(s, p));
      batch.positions.push_back(static_cast<int32_t>(p));
    }
    batch.cu_seqlens.push_back(static_cast<int32_t>(batch.tokens.size()));
  }
  return batch;
}

// Tokens [begin, begin + kChunk) of every sequence that is that long; logits for all of them.
StepBatch InferBatch(int64_t begin) {
  StepBatch batch;
  batch.max_blocks = (kLengths[0] + kKvBlockTokens - 1) / kKvBlockTokens;
  batch.query_start.push_back(0);
  for (int64_t s = 0; s < std::ssize(kLengths); ++s) {
    const int64_t end = std::min(kLengths[s], begin + kChunk);
    if (end <= begin) continue;
    for (int64_t b = 0; b < batch.max_blocks; ++b) {
      batch.block_tables.push_back(static_cast<int32_t>(b * std::ssize(kLengths) + s));
    }
    const int32_t* blocks = &batch.block_tables[batch.block_tables.size() - batch.max_blocks];
    for (int64_t p = begin; p < end; ++p) {
      batch.logit_rows.push_back(static_cast<int32_t>(batch.tokens.size()));
      batch.tokens.push_back(TokenAt(s, p));
      batch.positions.push_back(static_cast<int32_t>(p));
      batch.slots.push_back(
          static_cast<int32_t>(blocks[p / kKvBlockTokens] * kKvBlockTokens + p % kKvBlockTokens));
    }
    batch.query_start.push_back(static_cast<int32_t>(batch.tokens.size()));
    batch.context.push_back(static_cast<int32_t>(end));
  }
  return batch;
}

// Waits for the work that `tensor` comes from.
void Update(const ExecContext& ctx, ConstTensor tensor, Digester* digester) {
  if (ctx.stream != nullptr) ctx.stream->Synchronize();
  const HostCopy host(tensor);
  digester->Update(host.view().data(), tensor.bytes());
}

void DigestTraining(const ExecContext& ctx, const ModelWeights& weights, const Fp32Parts& fp32,
                    Digester* digester) {
  const PackedBatch batch = TrainBatch();
  const auto rows = static_cast<int64_t>(batch.logit_rows.size());
  const Transformer transformer(weights.config(), fp32);
  TrainActivations activations;
  OwnedTensor hidden("fingerprint.hidden", fp32.hidden_dtype(weights.dtype()),
                     {rows, weights.config().hidden_size}, ctx.device);
  OwnedTensor log_probs("fingerprint.log_probs", DType::kFloat32, {rows}, ctx.device);
  OwnedTensor entropy("fingerprint.entropy", DType::kFloat32, {rows}, ctx.device);
  transformer.ForwardTrain(ctx, weights, batch, Recompute::kNone, &activations, hidden);
  Workspace::Scope scratch(ctx.workspace);
  LmHeadLogProb(ctx, hidden, weights.head(), IndicesOf(ctx, batch.targets, &scratch), kTemperature,
                log_probs, entropy, {});
  Update(ctx, hidden, digester);
  Update(ctx, log_probs, digester);
  Update(ctx, entropy, digester);
}

// One row of every way to sample.
SamplingRow RowOf(int64_t row) {
  SamplingRow sampling;
  sampling.key = {.seed = kSeed,
                  .domain = SamplingDomain::kTrain,
                  .group = static_cast<uint64_t>(row),
                  .index = 3,
                  .position = 5};
  sampling.temperature = row % 5 == 4 ? 0 : kTemperature;
  if (row % 5 == 1) sampling.top_k = 7;
  if (row % 5 == 2) sampling.top_p = 0.8f;
  if (row % 5 == 3) sampling.min_p = 0.1f;
  return sampling;
}

void DigestInference(const ExecContext& ctx, const ModelWeights& weights, const Fp32Parts& fp32,
                     Digester* digester) {
  const ModelConfig& config = weights.config();
  const Transformer transformer(config, fp32);
  const int64_t blocks = InferBatch(0).max_blocks * std::ssize(kLengths);
  KvCache cache(config, weights.dtype(), blocks, ctx.device);
  for (int64_t begin = 0; begin < kLengths[0]; begin += kChunk) {
    const StepBatch batch = InferBatch(begin);
    const auto rows = static_cast<int64_t>(batch.logit_rows.size());
    OwnedTensor hidden("fingerprint.hidden", fp32.hidden_dtype(weights.dtype()),
                       {rows, config.hidden_size}, ctx.device);
    OwnedTensor logits("fingerprint.logits", DType::kFloat32, {rows, config.vocab_size},
                       ctx.device);
    OwnedTensor tokens("fingerprint.tokens", DType::kInt32, {rows}, ctx.device);
    OwnedTensor log_probs("fingerprint.log_probs", DType::kFloat32, {rows}, ctx.device);
    transformer.ForwardInfer(ctx, weights, batch, &cache, hidden);
    Linear(ctx, hidden, weights.head(), logits);
    std::vector<SamplingRow> sampling;
    for (int64_t row = 0; row < rows; ++row) sampling.push_back(RowOf(row));
    SampleTokens(ctx, logits, sampling, tokens, log_probs);
    Update(ctx, hidden, digester);
    Update(ctx, tokens, digester);
    Update(ctx, log_probs, digester);
  }
}

}  // namespace

std::string NumericsFingerprint(const ExecContext& ctx) {
  Digester digester;
  for (const ModelConfig& config : {NormedConfig(), BiasedConfig()}) {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
      const ModelWeights weights = FixedWeights(ctx, config, dtype);
      DigestTraining(ctx, weights, {}, &digester);
      DigestInference(ctx, weights, {}, &digester);
      if (dtype == DType::kFloat32 || !config.qk_norm) continue;
      const Fp32Parts fp32 = {.residual = true, .head = true};
      DigestTraining(ctx, weights, fp32, &digester);
      DigestInference(ctx, weights, fp32, &digester);
    }
  }
  return digester.Finish().Hex();
}

}  // namespace halfstep
