// SPDX-License-Identifier: Apache-2.0
// A job is one 64-bit word {serial number, tasks left}: a thread that lowers `tasks left` by one
// owns a task, and the caller cannot return before that task is done, so what the word refers to is
// alive. A worker that wakes late finds no task left and harms nobody: the caller never waits for a
// wake-up.
#include "kernels/thread_pool.h"

#include <immintrin.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "kernels/check.h"

namespace halfstep {
namespace {

constexpr std::chrono::microseconds kSpin{30};
constexpr uint64_t kTasksMask = 0x7fffffffu;

// Spins until done() or kSpin has passed; returns done().
template <class Done>
bool SpinUntil(const Done& done) {
  const auto begin = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() - begin < kSpin);
  return done();
}

}  // namespace

struct ThreadPool::State {
  alignas(64) std::atomic<uint64_t> job{0};
  std::atomic<uint32_t> serial{0};  // of the last job; sleeping workers wait on it
  std::atomic<bool> stop{false};
  // Of the running job: read only by a thread that owns one of its tasks.
  std::atomic<const std::function<void(int64_t, int)>*> body{nullptr};
  std::atomic<int64_t> tasks{0};
  alignas(64) std::atomic<int32_t> unfinished{0};
  std::vector<std::thread> workers;

  // Runs tasks until none is left.
  void Work(int thread) {
    uint64_t word = job.load(std::memory_order_acquire);
    while ((word & kTasksMask) != 0) {
      if (!job.compare_exchange_weak(word, word - 1, std::memory_order_acq_rel,
                                     std::memory_order_acquire)) {
        continue;
      }
      const int64_t left = static_cast<int64_t>(word & kTasksMask);
      (*body.load(std::memory_order_relaxed))(tasks.load(std::memory_order_relaxed) - left, thread);
      if (unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished.notify_one();
      word = job.load(std::memory_order_acquire);
    }
  }

  void WorkerLoop(int thread) {
    uint32_t seen = 0;
    while (!stop.load(std::memory_order_acquire)) {
      const auto changed = [&] { return serial.load(std::memory_order_acquire) != seen; };
      if (!SpinUntil(changed)) serial.wait(seen, std::memory_order_acquire);
      seen = serial.load(std::memory_order_acquire);
      Work(thread);
    }
  }
};

ThreadPool::ThreadPool(int threads) : threads_(threads), state_(std::make_unique<State>()) {
  HALFSTEP_CHECK_GE(threads, 1);
  for (int thread = 1; thread < threads; ++thread) {
    state_->workers.emplace_back([state = state_.get(), thread] { state->WorkerLoop(thread); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true, std::memory_order_release);
  state_->serial.fetch_add(1, std::memory_order_release);
  state_->serial.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

void ThreadPool::ParallelFor(int64_t tasks, const std::function<void(int64_t, int)>& body) {
  HALFSTEP_CHECK_LE(tasks, static_cast<int64_t>(kTasksMask));
  if (tasks <= 0) return;
  if (threads_ == 1 || tasks == 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
  State& state = *state_;
  state.body.store(&body, std::memory_order_relaxed);
  state.tasks.store(tasks, std::memory_order_relaxed);
  state.unfinished.store(static_cast<int32_t>(tasks), std::memory_order_relaxed);
  const uint32_t serial = state.serial.load(std::memory_order_relaxed) + 1;
  state.job.store((uint64_t{serial} << 32) | static_cast<uint64_t>(tasks),
                  std::memory_order_release);
  // A locked exchange: a plain store could pass the look for sleepers inside notify_all.
  state.serial.exchange(serial, std::memory_order_acq_rel);
  state.serial.notify_all();  // a system call only if a worker sleeps
  state.Work(0);
  const auto finished = [&] { return state.unfinished.load(std::memory_order_acquire) == 0; };
  if (!SpinUntil(finished)) {
    for (int32_t left; (left = state.unfinished.load(std::memory_order_acquire)) != 0;) {
      state.unfinished.wait(left, std::memory_order_acquire);
    }
  }
}

}  // namespace halfstep
