// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation/engine.h"

#include <cmath>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "rollout_server/generation/engine_loop.h"
#include "rollout_server/generation/kv_pool.h"

namespace halfstep {
namespace {

constexpr size_t kMaxStops = 64;
constexpr size_t kMaxStopBytes = 256;
constexpr uint32_t kMaxSampleIndex = 1u << 24;  // of SamplingKey

absl::Status ValidateSampling(const SamplingParams& sampling) {
  const bool temperature = std::isfinite(sampling.temperature) && sampling.temperature >= 0;
  const bool cuts = sampling.top_k >= 0 && sampling.top_p > 0 && sampling.top_p <= 1 &&
                    sampling.min_p >= 0 && sampling.min_p <= 1;
  if (!temperature || !cuts || sampling.max_new_tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "sampling out of range: temperature ", sampling.temperature, " (at least 0), top_k ",
        sampling.top_k, " (at least 0), top_p ", sampling.top_p, " (above 0, at most 1), min_p ",
        sampling.min_p, " (0 to 1), max_new_tokens ", sampling.max_new_tokens, " (at least 1)"));
  }
  if (sampling.stop_strings.size() > kMaxStops || sampling.stop_token_ids.size() > kMaxStops) {
    return absl::InvalidArgumentError(
        absl::StrCat("at most ", kMaxStops, " stop strings and stop token ids each"));
  }
  for (const std::string& stop : sampling.stop_strings) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("a stop string has 1 to ", kMaxStopBytes, " bytes; got ", stop.size()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(EngineOptions options) {
  HALFSTEP_ASSIGN_OR_RETURN(
      const int64_t blocks,
      KvPoolBlocks(options.config, options.dtype,
                   {options.max_sequence_tokens, options.max_sequences, options.kv_cache_bytes}));
  try {
    return std::unique_ptr<Engine>(new Engine(std::make_unique<Loop>(std::move(options), blocks)));
  } catch (const std::bad_alloc&) {
    return Error(absl::StatusCode::kResourceExhausted, "OUT_OF_MEMORY",
                 absl::StrCat("no memory for a key-value cache of ", blocks,
                              " blocks; lower --kv-cache-bytes"));
  }
}

Engine::Engine(std::unique_ptr<Loop> loop) : loop_(std::move(loop)) {}
Engine::~Engine() { Stop(); }

const EngineOptions& Engine::options() const { return loop_->options(); }

void Engine::SetWeights(std::shared_ptr<const ModelWeights> weights, uint64_t version,
                        std::function<void(const absl::Status&)> done) {
  loop_->SetWeights(std::move(weights), version, std::move(done));
}

absl::StatusOr<GroupHandle> Engine::Submit(GroupRequest request, GroupCallbacks callbacks) {
  return loop_->Submit(std::move(request), std::move(callbacks));
}

void Engine::Cancel(GroupHandle group) { loop_->Cancel(group); }
bool Engine::Drain(absl::Time deadline) { return loop_->Drain(deadline); }
void Engine::Stop() { loop_->Stop(); }
EngineStats Engine::stats() const { return loop_->stats(); }

absl::Status Engine::Loop::Validate(const GroupRequest& request) const {
  HALFSTEP_RETURN_IF_ERROR(ValidateSampling(request.sampling));
  if (request.prompt.empty()) return absl::InvalidArgumentError("the prompt has no tokens");
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] < 0 || request.prompt[i] >= options_.config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("prompt token ", i, " has id ",
                                                     request.prompt[i], ", but the vocabulary has ",
                                                     options_.config.vocab_size, " ids"));
    }
  }
  const int64_t tokens =
      static_cast<int64_t>(request.prompt.size()) + request.sampling.max_new_tokens;
  if (tokens > options_.max_sequence_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("a prompt of ", request.prompt.size(), " tokens and ",
                     request.sampling.max_new_tokens, " new ones exceed the longest sequence of ",
                     options_.max_sequence_tokens, " tokens; ask for fewer"));
  }
  if (request.samples < 1 || request.samples > options_.max_outstanding ||
      request.samples > kMaxSampleIndex) {
    return absl::InvalidArgumentError(
        absl::StrCat("samples must be 1 to ", options_.max_outstanding, "; got ", request.samples));
  }
  if (!request.sampling.stop_strings.empty() && !options_.token_bytes) {
    return absl::InvalidArgumentError("stop strings need a tokenizer, and none is loaded");
  }
  return absl::OkStatus();
}

}  // namespace halfstep
