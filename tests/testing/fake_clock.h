// SPDX-License-Identifier: Apache-2.0
// A clock that stands still until a test moves it.
#pragma once

#include <algorithm>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/clock.h"

namespace halfstep {

// Thread-safe.
class FakeClock final : public Clock {
 public:
  explicit FakeClock(absl::Time now = absl::UnixEpoch() + absl::Hours(24)) : now_(now) {}

  absl::Time Now() const override {
    absl::MutexLock lock(&mutex_);
    return now_;
  }

  bool Await(absl::Mutex& mutex, const absl::Condition& condition,
             absl::Time deadline) const override {
    AddWaiter(&mutex);
    auto done = [&] { return condition.Eval() || Now() >= deadline; };
    mutex.Await(absl::Condition(&done));
    const bool holds = condition.Eval();
    RemoveWaiter(&mutex);
    return holds;
  }

  void Advance(absl::Duration by) {
    std::vector<absl::Mutex*> waiting;
    {
      absl::MutexLock lock(&mutex_);
      now_ += by;
      waiting = waiting_;
    }
    // Releasing a mutex makes absl evaluate the conditions that wait on it.
    for (absl::Mutex* mutex : waiting) absl::MutexLock lock(mutex);
  }

  // Waits (in real time) until `count` threads are inside Await.
  void WaitForWaiters(size_t count) const {
    auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return waiting_.size() >= count; };
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&enough));
  }

 private:
  void AddWaiter(absl::Mutex* mutex) const {
    absl::MutexLock lock(&mutex_);
    waiting_.push_back(mutex);
  }

  void RemoveWaiter(absl::Mutex* mutex) const {
    absl::MutexLock lock(&mutex_);
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), mutex));
  }

  mutable absl::Mutex mutex_;
  absl::Time now_ ABSL_GUARDED_BY(mutex_);
  mutable std::vector<absl::Mutex*> waiting_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace halfstep
