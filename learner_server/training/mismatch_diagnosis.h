// SPDX-License-Identifier: Apache-2.0
// Which rollout's log-probs are not those of the policy it was to sample from, and why: its
// responses are scored again under what it may have used instead.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/model_weights.h"
#include "common/weight_sync/weight_set.h"
#include "learner_server/data/batcher.h"
#include "learner_server/training/score_responses.h"

namespace halfstep {

enum class MismatchCause : uint8_t {
  kUnknown,           // nothing below explains it
  kPermutedLogProbs,  // a response's log-probs are its own, in another order
  kStaleWeights,      // those of an older version
  kOtherPrecision,    // those of the version, cast to another dtype and computed in it
};

// "unknown", "permuted_log_probs", "stale_weights", "other_precision".
const char* Name(MismatchCause cause);

struct RolloutMismatch {
  std::string rollout_id = "";
  int64_t tokens = 0;
  double abs_mean = 0;  // of |log mu - log pi|, nats, pi the policy it was to sample from
  double abs_max = 0;
  MismatchCause cause = MismatchCause::kUnknown;
  // Mean |log mu - log pi| under the cause; `abs_mean` where it is unknown.
  double explained_abs_mean = 0;
  uint64_t stale_version = 0;     // of kStaleWeights
  DType dtype = DType::kFloat16;  // of kOtherPrecision
};

struct MismatchSuspicion {
  // Of the model: its configuration, layout and RoPE table are taken, its values are not.
  const ModelWeights* like = nullptr;
  // What the batch was to be sampled from.
  std::shared_ptr<const WeightSet> current = nullptr;
  // Sets of older versions that a rollout may still serve.
  std::vector<std::shared_ptr<const WeightSet>> older = {};
  ScoreOptions score = {};  // at the temperature of the samples
};

// One entry for each rollout of `sequences` that has tokens from their current_from on, by its id
// and over those tokens: an order is told to be another one of them alone. A cause is named when
// the log-probs under it are at least four times as near as those of the policy itself, the nearest
// first; rollouts that agree as well as the best one (bit for bit, or within twice its mean) are
// left at kUnknown with their figures and looked at no further. In the fast profile the learner's
// forward is not the rollout's engine, so another precision can be told from the right one in
// `bitwise` only. Errors are those of ScoreResponses. Costs a forward over all sequences, and
// further ones over those of the suspects.
absl::StatusOr<std::vector<RolloutMismatch>> DiagnoseMismatch(
    const ExecContext& ctx, const MismatchSuspicion& suspicion,
    std::span<const TrainSequence> sequences);

// For people: who disagrees and why, such as "rollout r1: log-probs are off by 0.01 on average over
// 300 tokens, those of its weights of version 4, not 5 (stale_weights)"; empty when nobody stands
// out.
std::string DescribeMismatch(std::span<const RolloutMismatch> rollouts);

}  // namespace halfstep
