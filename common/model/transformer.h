// SPDX-License-Identifier: Apache-2.0
// Transformer: the decoder of the Llama, Qwen2 and Qwen3 families, with a manual backward.
//
// Training and inference share every block but the place where keys and values live, so the hidden
// state of a token is the same bits on both paths. Values are rounded to the dtype at the end of
// every operation (docs/numerics.md), but for the parts that are asked to stay FP32. Inference in
// the fast profile is an engine of its own, with fused operations that round at fewer places.
#pragma once

#include <cstddef>
#include <memory>

#include "common/model/batch.h"
#include "common/model/fp32_parts.h"
#include "common/model/kv_cache.h"
#include "common/model/model_config.h"
#include "common/model/model_weights.h"
#include "common/model/parameter_buffer.h"
#include "kernels/exec_context.h"

namespace halfstep {

class TensorObserver;

// Which activations the forward keeps for the backward.
enum class Recompute {
  kNone,   // keep every layer's activations
  kLayer,  // keep each layer's input and run its forward again in the backward; same bits
};

// Of what a training forward keeps.
struct ActivationDTypes {
  DType values = DType::kFloat16;    // those of the weights
  DType residual = DType::kFloat16;  // of the residual stream
};

// Saved by ForwardTrain for Backward; reusable, grows to the largest batch seen. Opaque.
class TrainActivations {
 public:
  TrainActivations();
  ~TrainActivations();
  TrainActivations(TrainActivations&&) noexcept;
  TrainActivations& operator=(TrainActivations&&) noexcept;

  // What a batch of `tokens`, `logit_rows` of them scored, takes.
  static size_t Bytes(const ModelConfig& config, const ActivationDTypes& dtypes, int64_t tokens,
                      int64_t logit_rows, Recompute recompute);

 private:
  friend class Transformer;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// FP32 gradients over the layout. Tied word embeddings have two sources; each keeps its own
// accumulation chain over the tokens of a step, so that the split into micro-batches changes no
// bit.
class ModelGradients {
 public:
  explicit ModelGradients(std::shared_ptr<const ParameterLayout> layout,
                          Device device = kCpuDevice);

  // What the gradients of such a model take.
  static size_t Bytes(const ParameterLayout& layout);

  void SetZero(const ExecContext& ctx);
  // Where the LM head accumulates: the head's gradient [vocab, hidden].
  Tensor head();
  // Where the embedding accumulates: a separate buffer when tied.
  Tensor embedding();
  Tensor view(int parameter) { return buffer_.view(parameter); }
  // Adds the separate embedding gradient, once after the last micro-batch; returns the complete
  // gradient.
  ParameterBuffer& Finish(const ExecContext& ctx);

 private:
  ParameterBuffer buffer_;
  OwnedTensor tied_embedding_;
};

// Stateless apart from the configuration; weights, activations and cache are arguments. One pass at
// a time per ExecContext.
class Transformer {
 public:
  // `observer`, which outlives it, sees what ForwardTrain and Backward store, recomputation apart;
  // null costs nothing.
  explicit Transformer(const ModelConfig& config, const Fp32Parts& fp32 = {},
                       TensorObserver* observer = nullptr);

  const ModelConfig& config() const { return config_; }
  const Fp32Parts& fp32() const { return fp32_; }

  // hidden: [logit_rows, hidden_size], after the final norm, rows of batch.logit_rows only. Its
  // dtype, here and below, is fp32().hidden_dtype of that of the weights.
  void ForwardTrain(const ExecContext& ctx, const ModelWeights& weights, const PackedBatch& batch,
                    Recompute recompute, TrainActivations* activations, Tensor hidden) const;

  // dhidden: gradient of `hidden` (may carry the loss scale). Parameter gradients accumulate.
  // Counts no saturated stores: ForwardTrain has.
  void Backward(const ExecContext& ctx, const ModelWeights& weights, const PackedBatch& batch,
                const TrainActivations& activations, ConstTensor dhidden,
                ModelGradients* gradients) const;

  // hidden: [logit_rows, hidden_size], after the final norm.
  void ForwardInfer(const ExecContext& ctx, const ModelWeights& weights, const StepBatch& batch,
                    KvCache* cache, Tensor hidden) const;

 private:
  ActivationDTypes DTypesFor(const ModelWeights& weights) const {
    return {weights.dtype(), fp32_.residual_dtype(weights.dtype())};
  }

  ModelConfig config_;
  Fp32Parts fp32_;
  TensorObserver* observer_ = nullptr;
};

}  // namespace halfstep
