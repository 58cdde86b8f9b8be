// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation/token_scorer.h"

#include <algorithm>
#include <cmath>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "common/model/batch_indices.h"
#include "kernels/check.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/log_prob.h"
#include "rollout_server/generation/kv_pool.h"

namespace halfstep {

absl::StatusOr<std::unique_ptr<TokenScorer>> TokenScorer::Create(
    const ExecContext& ctx, const TokenScorerOptions& options) {
  HALFSTEP_ASSIGN_OR_RETURN(const int64_t blocks,
                            KvPoolBlocks(options.config, options.dtype,
                                         {.max_sequence_tokens = options.max_sequence_tokens,
                                          .max_sequences = options.max_sequences,
                                          .max_bytes = options.kv_cache_bytes}));
  const int64_t per_lane = (options.max_sequence_tokens + kKvBlockTokens - 1) / kKvBlockTokens;
  return absl::WrapUnique(new TokenScorer(ctx, options, blocks / per_lane, per_lane));
}

TokenScorer::TokenScorer(const ExecContext& ctx, const TokenScorerOptions& options, int64_t lanes,
                         int64_t blocks_per_lane)
    : ctx_(ctx),
      options_(options),
      transformer_(options.config, options.fp32),
      blocks_per_lane_(blocks_per_lane),
      lanes_(static_cast<size_t>(lanes)),
      cache_(options.config, options.dtype, lanes * blocks_per_lane, ctx.device),
      hidden_("scorer.hidden", options.fp32.hidden_dtype(options.dtype),
              {lanes, options.config.hidden_size}, ctx.device),
      row_log_probs_("scorer.log_probs", lanes, ctx.device) {}

absl::StatusOr<std::vector<std::vector<float>>> TokenScorer::Score(
    const ModelWeights& weights, std::span<const GivenTokens> sequences, float temperature,
    const std::function<bool(int64_t done)>& go_on) {
  HALFSTEP_CHECK(weights.dtype() == options_.dtype);
  for (const GivenTokens& given : sequences) {
    HALFSTEP_CHECK_GE(given.prompt_tokens, 1);
    HALFSTEP_CHECK_LT(given.prompt_tokens, static_cast<int64_t>(given.tokens.size()));
    HALFSTEP_CHECK_LE(static_cast<int64_t>(given.tokens.size()), options_.max_sequence_tokens);
  }
  std::fill(lanes_.begin(), lanes_.end(), Lane());
  std::vector<std::vector<float>> log_probs(sequences.size());
  const auto total = static_cast<int64_t>(sequences.size());
  int64_t taken = 0;
  for (int64_t done = 0; done < total;) {
    for (Lane& lane : lanes_) {
      if (lane.sequence < 0 && taken < total) lane = {.sequence = taken++, .next = 0};
    }
    BuildBatch(sequences);
    const auto rows = static_cast<int64_t>(targets_.size());
    const Tensor hidden = hidden_.view().Rows(0, rows);
    transformer_.ForwardInfer(ctx_, weights, batch_, &cache_, hidden);
    if (rows > 0) {
      Workspace::Scope scratch(ctx_.workspace);
      LmHeadLogProb(ctx_, hidden, weights.head(), IndicesOf(ctx_, targets_, &scratch),
                    temperature > 0 ? temperature : 1, row_log_probs_.device(0, rows), Tensor(),
                    Tensor());
    }
    row_log_probs_.ToHost(ctx_, 0, rows);
    const float* const row_log_probs = row_log_probs_.host();
    for (size_t row = 0; row < targets_.size(); ++row) {
      std::vector<float>& scored = log_probs[scored_[row]];
      if (!std::isfinite(row_log_probs[row])) {
        return Error(absl::StatusCode::kInternal, "NON_FINITE_LOGITS",
                     absl::StrCat("a logit of response token ", scored.size(), " of sequence ",
                                  scored_[row], " is not finite in ", Name(options_.dtype),
                                  ": the forward pass overflows; use bf16 or fp32"));
      }
      scored.push_back(row_log_probs[row]);
    }
    for (Lane& lane : lanes_) {
      if (lane.sequence < 0) continue;
      // The last token is scored but never read.
      if (lane.next + 1 < static_cast<int64_t>(sequences[lane.sequence].tokens.size())) continue;
      lane.sequence = -1;
      ++done;
    }
    if (go_on != nullptr && !go_on(done)) {
      return absl::CancelledError("interrupted while the rollout's engine scored");
    }
  }
  return log_probs;
}

// Decode tokens first, as the engine's scheduler has it, then as much of the prompts as there is
// room for.
void TokenScorer::BuildBatch(std::span<const GivenTokens> sequences) {
  batch_.tokens.clear();
  batch_.positions.clear();
  batch_.slots.clear();
  batch_.query_start.assign(1, 0);
  batch_.context.clear();
  batch_.block_tables.clear();
  batch_.max_blocks = blocks_per_lane_;
  batch_.logit_rows.clear();
  targets_.clear();
  scored_.clear();
  int64_t room = std::max(options_.max_step_tokens, 2 * static_cast<int64_t>(lanes_.size()));
  for (const bool decode : {true, false}) {
    for (size_t i = 0; i < lanes_.size() && room > 0; ++i) {
      if (lanes_[i].sequence < 0) continue;
      const GivenTokens& given = sequences[lanes_[i].sequence];
      // A lane that the first turn has moved on is decoding still, so the second leaves it alone.
      const int64_t prompt_left = given.prompt_tokens - lanes_[i].next;
      if (decode != (prompt_left <= 0)) continue;
      const int64_t count = decode ? 1 : std::min(prompt_left, room);
      AddChunk(static_cast<int64_t>(i), given, count);
      room -= count;
    }
  }
}

void TokenScorer::AddChunk(int64_t lane, const GivenTokens& given, int64_t count) {
  Lane& state = lanes_[lane];
  const int64_t first_block = lane * blocks_per_lane_;
  const int64_t end = state.next + count;
  for (int64_t p = state.next; p < end; ++p) {
    batch_.tokens.push_back(given.tokens[p]);
    batch_.positions.push_back(static_cast<int32_t>(p));
    batch_.slots.push_back(static_cast<int32_t>(first_block * kKvBlockTokens + p));
  }
  batch_.query_start.push_back(static_cast<int32_t>(batch_.tokens.size()));
  batch_.context.push_back(static_cast<int32_t>(end));
  for (int64_t block = 0; block < blocks_per_lane_; ++block) {
    batch_.block_tables.push_back(static_cast<int32_t>(first_block + block));
  }
  state.next = end;
  if (end < given.prompt_tokens) return;
  batch_.logit_rows.push_back(batch_.query_start.back() - 1);
  targets_.push_back(given.tokens[end]);
  scored_.push_back(state.sequence);
}

}  // namespace halfstep
