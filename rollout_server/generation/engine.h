// SPDX-License-Identifier: Apache-2.0
// Engine: the loop that generates. One thread schedules, runs the model and samples, step after
// step, and swaps weights only between steps.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/model/fp32_parts.h"
#include "common/model/model_config.h"
#include "common/model/model_weights.h"
#include "kernels/dtype.h"
#include "kernels/exec_context.h"
#include "rollout_server/generation/generation_request.h"

namespace halfstep {

// What one step meant for the sequences in it, for metrics.
struct StepReport {
  std::vector<absl::Duration> first_token;  // from submission to a sequence's first token
  std::vector<absl::Duration> next_token;   // between two tokens of one sequence
  struct Finished {
    FinishReason reason;
    absl::Duration latency;  // from submission
  };
  std::vector<Finished> finished;
};

// A snapshot taken between steps.
struct EngineStats {
  int64_t sequences_running = 0;
  int64_t sequences_waiting = 0;
  int64_t groups_outstanding = 0;
  int64_t kv_blocks_total = 0;
  int64_t kv_blocks_free = 0;
  int64_t steps = 0;
  int64_t tokens_generated = 0;
  int64_t tokens_computed = 0;       // through the model: prompts, generated tokens, recomputation
  int64_t prompt_tokens = 0;         // of those, of prompts
  int64_t prompt_tokens_shared = 0;  // not computed because another sample of the group had been
  int64_t samples_finished = 0;
  int64_t preemptions = 0;
  int64_t weight_swaps = 0;
  int64_t saturated_stores = 0;
  absl::Duration forward_time;
  absl::Duration head_time;     // LM head and sampling
  absl::Duration prepare_time;  // scheduling, batches, copies, delivering results
  absl::Time last_progress = absl::InfinitePast();
  bool has_weights = false;
  uint64_t version = 0;  // being served
  absl::Time last_swap = absl::InfinitePast();
};

struct EngineOptions {
  ModelConfig config;  // its eos_token_ids end responses
  Device device;       // where weights and cache live, and the model runs
  DType dtype = DType::kFloat16;
  Fp32Parts fp32;
  Profile profile = Profile::kBitwise;
  int64_t max_sequence_tokens = 0;  // longest prompt plus response
  int64_t max_sequences = 0;        // generated at once
  int64_t max_outstanding = 4096;   // sequences accepted and not finished, running ones included
  int64_t max_step_tokens =
      512;                    // computed in one step; raised above max_sequences where it is not
  size_t kv_cache_bytes = 0;  // see KvPoolOptions::max_bytes
  int threads = 1;
  // Bytes of a token's text, for stop strings; without it requests with stop strings are refused.
  // Called on the engine's thread; what it returns must stay valid until its next call.
  std::function<std::string_view(int32_t)> token_bytes;
  // Called on the engine's thread after each step, after each change of weights, and before it
  // waits for work; may be empty.
  std::function<void(const StepReport&, const EngineStats&)> on_step;
};

using GroupHandle = uint64_t;

// All members are thread-safe.
class Engine {
 public:
  // Allocates the cache and starts the thread. RESOURCE_EXHAUSTED when the cache does not fit.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(EngineOptions options);
  // Stops.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const EngineOptions& options() const;

  // Serves `weights` (packed, of the engine's configuration and dtype) as `version` once every
  // group that names another version has ended; groups that name none go on under the new weights.
  // `done`, on the engine's thread, says when. A later
  // call replaces one that still waits, whose `done` then gets CANCELLED, as it does when the
  // engine stops.
  void SetWeights(std::shared_ptr<const ModelWeights> weights, uint64_t version,
                  std::function<void(const absl::Status&)> done);

  // Accepts a group, whose end `callbacks` will tell. INVALID_ARGUMENT for a request that can never
  // be generated, RESOURCE_EXHAUSTED (reason ENGINE_FULL) beyond max_outstanding, UNAVAILABLE when
  // stopping. A version that is neither served nor being waited for is reported by on_failure
  // (FAILED_PRECONDITION, reason VERSION_NOT_SERVED); a non-finite logit likewise (INTERNAL, reason
  // NON_FINITE_LOGITS).
  absl::StatusOr<GroupHandle> Submit(GroupRequest request, GroupCallbacks callbacks);

  // Ends a group; its on_failure gets CANCELLED unless it ended by itself. Unknown handles are
  // ignored.
  void Cancel(GroupHandle group);

  // Waits until no group is outstanding; returns whether that came before `deadline`.
  bool Drain(absl::Time deadline);

  // Ends every group with CANCELLED and joins the thread. Idempotent.
  void Stop();

  EngineStats stats() const;

 private:
  class Loop;
  explicit Engine(std::unique_ptr<Loop> loop);
  std::unique_ptr<Loop> loop_;
};

}  // namespace halfstep
