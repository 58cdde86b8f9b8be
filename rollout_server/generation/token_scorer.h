// SPDX-License-Identifier: Apache-2.0
// TokenScorer: the log-probs that the rollout's engine gives to tokens it is told, rather than to
// those it draws: the same prefill and one-token decode passes over the paged cache, many sequences
// at once. So one sample can be looked at in several precisions. In the bitwise profile the bits
// are those that the engine reports; in the fast one they are when as many sequences share a pass,
// which its choice of kernels may depend on.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/batch.h"
#include "common/model/kv_cache.h"
#include "common/model/model_config.h"
#include "common/model/model_weights.h"
#include "common/model/transformer.h"
#include "kernels/buffer.h"
#include "kernels/exec_context.h"
#include "kernels/host_mirror.h"

namespace halfstep {

struct TokenScorerOptions {
  ModelConfig config;
  DType dtype = DType::kFloat16;
  Fp32Parts fp32;
  int64_t max_sequence_tokens = 0;  // longest prompt plus response
  int64_t max_sequences = 0;        // in one pass; fewer where the cache is too small for them
  int64_t max_step_tokens = 512;    // computed in one pass; raised to 2 * max_sequences
  size_t kv_cache_bytes = 0;        // see KvPoolOptions::max_bytes
};

// Prompt and response in one list.
struct GivenTokens {
  std::span<const int32_t> tokens;  // below the vocabulary's size; at most max_sequence_tokens
  int64_t prompt_tokens = 0;        // at least 1, and fewer than there are
};

// Not thread-safe.
class TokenScorer {
 public:
  // `ctx`, whose profile is the one that is run, outlives it. RESOURCE_EXHAUSTED when the cache
  // does not fit; throws std::bad_alloc when there is less memory than there seemed.
  static absl::StatusOr<std::unique_ptr<TokenScorer>> Create(const ExecContext& ctx,
                                                             const TokenScorerOptions& options);

  // The log-prob of each response token at `temperature` (0, greedy, reports as 1 does). `weights`:
  // packed, of the scorer's configuration and dtype. `go_on`, if not empty, is told after each pass
  // how many sequences are done; CANCELLED when it says false. INTERNAL (reason NON_FINITE_LOGITS),
  // naming sequence and token, for a non-finite logit.
  absl::StatusOr<std::vector<std::vector<float>>> Score(
      const ModelWeights& weights, std::span<const GivenTokens> sequences, float temperature,
      const std::function<bool(int64_t done)>& go_on);

 private:
  // Room for one sequence: cache blocks of its own.
  struct Lane {
    int64_t sequence = -1;  // -1: free
    int64_t next = 0;       // first token that is not in the cache
  };

  TokenScorer(const ExecContext& ctx, const TokenScorerOptions& options, int64_t lanes,
              int64_t blocks_per_lane);
  // Takes `count` tokens of the lane's sequence into the pass.
  void AddChunk(int64_t lane, const GivenTokens& given, int64_t count);
  void BuildBatch(std::span<const GivenTokens> sequences);

  const ExecContext ctx_;
  const TokenScorerOptions options_;
  const Transformer transformer_;
  const int64_t blocks_per_lane_;
  std::vector<Lane> lanes_;
  KvCache cache_;
  OwnedTensor hidden_;               // [lanes, hidden_size]
  HostMirror<float> row_log_probs_;  // [lanes]
  StepBatch batch_;
  std::vector<int32_t> targets_;  // [logit rows], the token whose log-prob is wanted
  std::vector<int64_t> scored_;   // [logit rows], the sequence it belongs to
};

}  // namespace halfstep
