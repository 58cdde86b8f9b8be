// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <deque>
#include <utility>

#include "cli/generator.h"
#include "cli/piece_queue.h"
#include "common/base/status_macros.h"
#include "rollout_server/generation/generation_request.h"

namespace halfstep {
namespace {

std::vector<GroupRequest> MakeRequests(const GenerateOrder& order, const LocalModel& model) {
  std::vector<GroupRequest> requests;
  for (const PromptText& prompt : order.prompts) {
    GroupRequest& request = requests.emplace_back();
    request.prompt = model.tokenizer->Encode(prompt.text);
    request.samples = order.samples;
    request.sampling = order.sampling;
    if (request.sampling.max_new_tokens == 0) {
      request.sampling.max_new_tokens = UsualNewTokens(static_cast<int64_t>(request.prompt.size()),
                                                       model.folder.config.max_positions);
    }
    request.seed = order.seed + (requests.size() - 1);
  }
  return requests;
}

// One prompt's way from the engine into the queue; used on the engine's thread only.
class Relay {
 public:
  Relay(size_t prompt, uint32_t samples, std::shared_ptr<const Tokenizer> tokenizer,
        PieceQueue* queue)
      : prompt_(prompt), unfinished_(samples), queue_(queue) {
    for (uint32_t i = 0; i < samples; ++i) texts_.emplace_back(tokenizer, SpecialTokens::kOmit);
  }

  void OnToken(const GeneratedToken& token) {
    queue_->Push({.prompt = prompt_,
                  .index = token.index,
                  .tokens = {token.token},
                  .log_probs = {token.log_prob},
                  .text = texts_[token.index].Push(token.token),
                  .finish_reason = std::nullopt});
  }

  void OnSample(const Sample& sample) {
    queue_->Push({.prompt = prompt_,
                  .index = sample.index,
                  .tokens = {},
                  .log_probs = {},
                  .text = texts_[sample.index].Finish(),
                  .finish_reason = sample.finish_reason});
    if (--unfinished_ == 0) queue_->End(absl::OkStatus());
  }

 private:
  const size_t prompt_;
  uint32_t unfinished_;
  PieceQueue* const queue_;
  std::deque<StreamingDecoder> texts_;  // by sample
};

}  // namespace

absl::Status LocalGenerator::Generate(const GenerateOrder& order, const OnPiece& on_piece,
                                      const std::function<bool()>& go_on) {
  std::vector<GroupRequest> requests = MakeRequests(order, model_);
  LocalEngineOptions options;
  options.dtype = options_.dtype;
  options.fp32 = options_.fp32;
  options.profile = options_.profile;
  options.threads = options_.threads;
  options.samples = static_cast<int64_t>(requests.size()) * order.samples;
  for (const GroupRequest& request : requests) {
    options.max_sequence_tokens =
        std::max(options.max_sequence_tokens,
                 static_cast<int64_t>(request.prompt.size()) + request.sampling.max_new_tokens);
  }
  options.max_sequence_tokens =
      std::min<int64_t>(options.max_sequence_tokens, model_.folder.config.max_positions);

  // The engine, which is stopped first, calls into the other two.
  PieceQueue queue(requests.size());
  std::deque<Relay> relays;
  HALFSTEP_ASSIGN_OR_RETURN(const auto engine, StartLocalEngine(model_, options));
  for (size_t i = 0; i < requests.size(); ++i) {
    Relay* const relay = &relays.emplace_back(i, order.samples, model_.tokenizer, &queue);
    const PromptText& prompt = order.prompts[i];
    GroupCallbacks callbacks;
    callbacks.on_token = [relay](const GeneratedToken& token) { relay->OnToken(token); };
    callbacks.on_sample = [relay](const Sample& sample) { relay->OnSample(sample); };
    callbacks.on_failure = [&queue, &prompt](const absl::Status& why) {
      queue.End(AtPrompt(why, prompt));
    };
    const auto handle = engine->Submit(std::move(requests[i]), std::move(callbacks));
    if (!handle.ok()) return AtPrompt(handle.status(), prompt);
  }
  return queue.Deliver(on_piece, go_on);
}

}  // namespace halfstep
