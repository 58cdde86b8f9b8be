// SPDX-License-Identifier: Apache-2.0
// A queue and its consumers.
#include "common/reward/scoring_pool.h"

#include <utility>

#include "common/tokenizer/tokenizer.h"

namespace halfstep {

ScoringPool::ScoringPool(std::shared_ptr<const Verifier> verifier,
                         std::shared_ptr<const Tokenizer> tokenizer,
                         const ScoringPoolOptions& options)
    : verifier_(std::move(verifier)),
      tokenizer_(std::move(tokenizer)),
      tasks_("scoring", {.items = options.queue_items}) {
  for (int i = 0; i < options.threads; ++i) {
    threads_.emplace_back([this] {
      while (true) {
        // Until the pool is destroyed: an idle pool is no error.
        const absl::StatusOr<Task> task = tasks_.Pop(absl::InfiniteFuture());
        if (!task.ok()) return;
        Run(*task);
      }
    });
  }
}

ScoringPool::~ScoringPool() {
  tasks_.Close();
  for (std::thread& thread : threads_) thread.join();
}

void ScoringPool::Submit(std::vector<int32_t> response, std::string answer,
                         std::function<void(Reward)> done) {
  Task task{std::move(response), std::move(answer), std::move(done)};
  if (!tasks_.TryPush(task)) Run(task);
}

void ScoringPool::Run(const Task& task) const {
  const std::string text = tokenizer_->Decode(task.response, SpecialTokens::kOmit);
  task.done(verifier_->Score(text, task.answer));
}

}  // namespace halfstep
