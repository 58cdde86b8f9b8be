// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "cli/client_call.h"
#include "cli/generator.h"
#include "cli/piece_queue.h"
#include "common/trajectory/proto_convert.h"
#include "halfstep/v1/generation.grpc.pb.h"

namespace halfstep {
namespace {

// A rollout server takes 16 calls at once, and other people may have some of them.
constexpr size_t kCallsAtOnce = 4;

v1::GenerateRequest MakeRequest(const GenerateOrder& order, size_t prompt) {
  v1::GenerateRequest request;
  request.set_text(order.prompts[prompt].text);
  ToProto(order.sampling, request.mutable_sampling());
  request.set_samples(order.samples);
  request.set_seed(order.seed + prompt);
  return request;
}

Piece MakePiece(const v1::GenerateResponse& response, size_t prompt) {
  return {.prompt = prompt,
          .index = response.index(),
          .tokens = {response.tokens().begin(), response.tokens().end()},
          .log_probs = {response.log_probs().begin(), response.log_probs().end()},
          .text = response.text(),
          .finish_reason = FromProto(response.finish_reason())};
}

// Several threads take the prompts in order, each with one call at a time.
class Calls {
 public:
  Calls(const GenerateOrder& order, const Peer& server, v1::GenerationService::Stub* stub,
        PieceQueue* queue)
      : order_(order), server_(server), stub_(stub), queue_(queue) {
    const size_t threads = std::min(kCallsAtOnce, order.prompts.size());
    for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
  }
  // Cancels what is not done.
  ~Calls() {
    stopping_ = true;
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void Run() {
    while (!stopping_) {
      const size_t prompt = next_++;
      if (prompt >= order_.prompts.size()) return;
      queue_->End(AtPrompt(Call(prompt), order_.prompts[prompt]));
    }
  }

  absl::Status Call(size_t prompt) {
    const auto context = MakeContext(server_.timeout);
    const Canceller canceller(context.get(), go_on_);
    const auto reader = stub_->Generate(context.get(), MakeRequest(order_, prompt));
    v1::GenerateResponse response;
    while (reader->Read(&response)) queue_->Push(MakePiece(response, prompt));
    return ExplainCall(reader->Finish(), server_);
  }

  const GenerateOrder& order_;
  const Peer& server_;
  v1::GenerationService::Stub* const stub_;
  PieceQueue* const queue_;
  std::atomic<bool> stopping_{false};
  const std::function<bool()> go_on_ = [this] { return !stopping_; };
  std::atomic<size_t> next_{0};
  std::vector<std::thread> threads_;
};

}  // namespace

absl::Status ServerGenerator::Generate(const GenerateOrder& order, const OnPiece& on_piece,
                                       const std::function<bool()>& go_on) {
  const Peer server = {"rollout server", "halfstep-rollout", "--server", target_, timeout_};
  const auto stub = v1::GenerationService::NewStub(channel_);
  PieceQueue queue(order.prompts.size());
  Calls calls(order, server, stub.get(), &queue);
  return queue.Deliver(on_piece, go_on);
}

}  // namespace halfstep
