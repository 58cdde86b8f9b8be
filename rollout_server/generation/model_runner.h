// SPDX-License-Identifier: Apache-2.0
// ModelRunner: carries out a StepPlan: model pass over the paged cache, LM head, sampling.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "common/model/batch.h"
#include "common/model/kv_cache.h"
#include "common/model/model_weights.h"
#include "common/model/transformer.h"
#include "kernels/buffer.h"
#include "kernels/exec_context.h"
#include "kernels/host_mirror.h"
#include "kernels/ops/sampling.h"
#include "rollout_server/generation/sequence.h"
#include "rollout_server/generation/step_plan.h"

namespace halfstep {

struct ModelRunnerOptions {
  ModelConfig config;
  DType dtype = DType::kFloat16;
  Fp32Parts fp32;
  int64_t kv_blocks = 0;
  int64_t max_draws = 0;        // tokens drawn in one step
  int64_t max_step_tokens = 0;  // tokens computed in one step
};

// Where the time of all steps went.
struct StepTimes {
  absl::Duration forward;  // model pass
  absl::Duration head;     // LM head and sampling
  absl::Duration prepare;  // building the batch and copying blocks
};

// Everything large is allocated at construction. Not thread-safe.
class ModelRunner {
 public:
  // Throws std::bad_alloc when the cache does not fit into memory.
  ModelRunner(const ModelRunnerOptions& options, const ExecContext& ctx);

  // Runs one step. `sequence` finds a planned sequence. The token and log-prob of plan.draws[i] are
  // afterwards tokens()[i] and log_probs()[i]; a row with a non-finite logit gives token -1 and
  // NaN.
  void Run(const StepPlan& plan, const ModelWeights& weights,
           const std::function<const Sequence&(SequenceId)>& sequence);

  std::span<const int32_t> tokens() const { return {tokens_.host(), rows_.size()}; }
  std::span<const float> log_probs() const { return {log_probs_.host(), rows_.size()}; }
  const StepTimes& times() const { return times_; }

 private:
  void BuildBatch(const StepPlan& plan, const std::function<const Sequence&(SequenceId)>& sequence);
  void CopyBlocks(const StepPlan& plan);
  // The final hidden state of each draw: [draws, hidden_size].
  ConstTensor HiddenOfDraws(const StepPlan& plan);
  void Draw(const StepPlan& plan, const ModelWeights& weights,
            const std::function<const Sequence&(SequenceId)>& sequence);

  const ModelConfig config_;
  const ExecContext ctx_;
  const Transformer transformer_;
  KvCache cache_;
  OwnedTensor hidden_;       // [max_draws, hidden_size], one row per logit row
  OwnedTensor draw_hidden_;  // [max_draws, hidden_size], one row per draw
  OwnedTensor logits_;       // FP32 [logit_chunk, vocab_size]
  int64_t logit_chunk_ = 0;
  StepBatch batch_;
  std::vector<SamplingRow> rows_;
  HostMirror<int32_t> tokens_;
  HostMirror<float> log_probs_;
  StepTimes times_;
};

}  // namespace halfstep
