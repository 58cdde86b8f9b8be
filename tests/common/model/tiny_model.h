// SPDX-License-Identifier: Apache-2.0
// Small models with random weights, an execution context, and random batches, for tests of the
// model.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "common/model/initialize.h"
#include "common/model/transformer.h"
#include "kernels/ops/elementwise.h"
#include "kernels/stream.h"
#include "kernels/thread_pool.h"
#include "kernels/workspace.h"
#include "tests/testing/test_device.h"

namespace halfstep {

// Two or three layers, grouped queries, a head_dim that is not hidden / heads, sizes that are no
// multiple of a vector.
inline ModelConfig TinyConfig(Architecture architecture) {
  ModelConfig config;
  config.architecture = architecture;
  config.vocab_size = 61;
  config.hidden_size = 40;
  config.intermediate_size = 52;
  config.layers = 3;
  config.heads = 6;
  config.kv_heads = 2;
  config.head_dim = 12;
  config.max_positions = 256;
  config.initializer_range = 0.25f;
  switch (architecture) {
    case Architecture::kLlama:
      config.rope.theta = 5000.0;
      config.rope.llama3 = Llama3RopeScaling{4.0, 1.0, 4.0, 32};
      config.tie_word_embeddings = true;
      config.qkv_bias = config.output_bias = config.mlp_bias = true;
      break;
    case Architecture::kQwen2:
      config.kv_heads = 3;
      config.qkv_bias = true;
      break;
    case Architecture::kQwen3:
      config.qk_norm = true;
      config.tie_word_embeddings = true;
      break;
  }
  return config;
}

// Owns what an ExecContext points to.
class TestContext {
 public:
  explicit TestContext(int threads = 1, Profile profile = Profile::kBitwise) : pool_(threads) {
    if (kEmulated) stream_ = std::make_unique<Stream>(kTestDevice);
    ctx_.device = kTestDevice;
    ctx_.stream = stream_.get();
    ctx_.profile = profile;
    ctx_.workspace = &workspace_;
    ctx_.threads = &pool_;
    ctx_.saturated_stores = &saturated_;
  }
  operator const ExecContext&() const { return ctx_; }  // NOLINT(google-explicit-constructor)
  int64_t saturated() const {
    AddSaturatedStores(ctx_);
    return saturated_;
  }

 private:
  Workspace workspace_{kTestDevice};
  std::unique_ptr<Stream> stream_;
  ThreadPool pool_;
  std::atomic<int64_t> saturated_{0};
  ExecContext ctx_;
};

// FP32 master weights: matrices as initialised, norms near 1, biases near 0, so that all matter.
inline ParameterBuffer RandomMaster(const ModelConfig& config, uint64_t seed) {
  ParameterBuffer master(std::make_shared<const ParameterLayout>(config), DType::kFloat32, "master",
                         kTestDevice);
  InitializeParameters(config, seed, &master);
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> jitter(-0.3f, 0.3f);
  for (size_t i = 0; i < master.layout().specs().size(); ++i) {
    const Tensor view = master.view(static_cast<int>(i));
    if (view.rank() != 1) continue;
    for (int64_t j = 0; j < view.elements(); ++j) view.as<float>()[j] += jitter(random);
  }
  return master;
}

inline std::unique_ptr<ModelWeights> WeightsFrom(const ModelConfig& config,
                                                 const ParameterBuffer& master, DType dtype) {
  TestContext ctx;
  auto weights = std::make_unique<ModelWeights>(config, master.shared_layout(), dtype,
                                                config.max_positions, kTestDevice);
  Cast(ctx, master.flat(), Overflow::kSaturate, weights->parameters().flat());
  weights->Pack(ctx);
  return weights;
}

// Host values as a tensor of the test device.
inline OwnedTensor OnTestDevice(const std::vector<int32_t>& values) {
  const Shape shape = {static_cast<int64_t>(values.size())};
  OwnedTensor tensor("test", DType::kInt32, shape, kTestDevice);
  CopyAndWait(ConstTensor(values.data(), DType::kInt32, shape), tensor);
  return tensor;
}
inline OwnedTensor OnTestDevice(const std::vector<float>& values) {
  const Shape shape = {static_cast<int64_t>(values.size())};
  OwnedTensor tensor("test", DType::kFloat32, shape, kTestDevice);
  CopyAndWait(ConstTensor(values.data(), DType::kFloat32, shape), tensor);
  return tensor;
}

using Sequences = std::vector<std::vector<int32_t>>;

// Five sequences that tests split into micro-batches {0}, {1, 2}, {3}, {4} without changing a bit
// of the gradients; on CUDA that holds for splits at multiples of 16 tokens (kernels/ops/linear.h).
inline const std::vector<int> kSplitLengths =
    kEmulated ? std::vector<int>{48, 7, 73, 16, 33} : std::vector<int>{40, 7, 65, 3, 33};

inline Sequences RandomSequences(const ModelConfig& config, const std::vector<int>& lengths,
                                 uint64_t seed) {
  std::mt19937_64 random(seed);
  Sequences sequences;
  for (const int length : lengths) {
    std::vector<int32_t>& sequence = sequences.emplace_back();
    for (int i = 0; i < length; ++i) {
      sequence.push_back(static_cast<int32_t>(random() % config.vocab_size));
    }
  }
  return sequences;
}

// Packs whole sequences; every token is a logit row, its target the next token (0 after the last).
inline PackedBatch Pack(const Sequences& sequences) {
  PackedBatch batch;
  batch.cu_seqlens.push_back(0);
  for (const auto& sequence : sequences) {
    for (size_t i = 0; i < sequence.size(); ++i) {
      batch.logit_rows.push_back(static_cast<int32_t>(batch.tokens.size()));
      batch.targets.push_back(i + 1 < sequence.size() ? sequence[i + 1] : 0);
      batch.positions.push_back(static_cast<int32_t>(i));
      batch.tokens.push_back(sequence[i]);
    }
    batch.cu_seqlens.push_back(static_cast<int32_t>(batch.tokens.size()));
  }
  return batch;
}

// Fills with normal values of the given deviation, rounded to the dtype.
inline OwnedTensor RandomTensor(DType dtype, Shape shape, float deviation, uint64_t seed) {
  TestContext ctx;
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  OwnedTensor wide("wide", DType::kFloat32, shape, kTestDevice);
  for (int64_t i = 0; i < shape.elements(); ++i) wide.view().as<float>()[i] = normal(random);
  OwnedTensor out("random", dtype, shape, kTestDevice);
  Cast(ctx, wide, Overflow::kSaturate, out);
  return out;
}

}  // namespace halfstep
