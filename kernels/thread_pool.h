// SPDX-License-Identifier: Apache-2.0
// A fixed pool of worker threads for the CPU backend.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace halfstep {

// ParallelFor may be called from one thread at a time. Workers wait briefly by spinning and then
// sleep, so that an idle pool leaves the cores to other processes.
class ThreadPool {
 public:
  // `threads` counts the caller: 1 starts no worker.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls body(task, thread) for every task in [0, tasks), thread in [0, threads()); tasks are
  // handed out in ascending order to whichever thread is free. Returns when all are done. `body`
  // must not throw.
  void ParallelFor(int64_t tasks, const std::function<void(int64_t task, int thread)>& body);

 private:
  struct State;
  int threads_;
  std::unique_ptr<State> state_;
};

}  // namespace halfstep
