// SPDX-License-Identifier: Apache-2.0
// Scores responses on a few threads beside the one that receives them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/base/bounded_queue.h"
#include "common/reward/verifier.h"
#include "common/trajectory/trajectory.h"

namespace halfstep {

class Tokenizer;

struct ScoringPoolOptions {
  int threads = 2;
  size_t queue_items = 4096;
};

// A reward is a function of response and answer alone, whatever the threads do. Thread-safe.
class ScoringPool {
 public:
  ScoringPool(std::shared_ptr<const Verifier> verifier, std::shared_ptr<const Tokenizer> tokenizer,
              const ScoringPoolOptions& options);
  // Finishes what was submitted. Nothing may be submitted any more.
  ~ScoringPool();
  ScoringPool(const ScoringPool&) = delete;
  ScoringPool& operator=(const ScoringPool&) = delete;

  // Decodes the response without special tokens, scores it and calls `done` exactly once, on a
  // thread of the pool, or on the caller's when the queue is full: nothing waits, and the work of a
  // score is bounded.
  void Submit(std::vector<int32_t> response, std::string answer, std::function<void(Reward)> done);

 private:
  struct Task {
    std::vector<int32_t> response;
    std::string answer;
    std::function<void(Reward)> done;
  };

  void Run(const Task& task) const;

  const std::shared_ptr<const Verifier> verifier_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  BoundedQueue<Task> tasks_;
  std::vector<std::thread> threads_;
};

}  // namespace halfstep
