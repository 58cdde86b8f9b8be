// SPDX-License-Identifier: Apache-2.0
// A queue between threads that is bounded in items and in bytes, with deadlines on both ends.
#pragma once

#include <cstddef>
#include <deque>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace halfstep {

struct QueueLimits {
  size_t items = 1;
  size_t bytes = std::numeric_limits<size_t>::max();
};

// First in, first out; any number of producers and consumers. Thread-safe. An item larger than the
// byte limit is taken only by an empty queue, so that it cannot wait for ever.
template <class T>
class BoundedQueue {
 public:
  // `name` is what error messages call it, such as "intake".
  BoundedQueue(std::string name, QueueLimits limits) : name_(std::move(name)), limits_(limits) {}
  BoundedQueue(const BoundedQueue&) = delete;
  BoundedQueue& operator=(const BoundedQueue&) = delete;

  // Waits for room. DEADLINE_EXCEEDED when none came, CANCELLED when the queue is closed; the item
  // is then dropped. `bytes` is what the item counts against the byte limit.
  absl::Status Push(T item, absl::Time deadline, size_t bytes = 0) {
    absl::MutexLock lock(&mutex_);
    auto may_go_on = [this, bytes]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return closed_ || HasRoom(bytes);
    };
    if (!mutex_.AwaitWithDeadline(absl::Condition(&may_go_on), deadline)) {
      return absl::DeadlineExceededError(
          absl::StrCat("no room in queue '", name_, "' (", items_.size(), " items, ", bytes_,
                       " bytes): its consumer is too slow or has stopped"));
    }
    if (closed_) return Closed();
    Append(std::move(item), bytes);
    return absl::OkStatus();
  }

  // Takes the item only if there is room at once; otherwise `item` is left as it was.
  bool TryPush(T& item, size_t bytes = 0) {
    absl::MutexLock lock(&mutex_);
    if (closed_ || !HasRoom(bytes)) return false;
    Append(std::move(item), bytes);
    return true;
  }

  // Waits for an item. DEADLINE_EXCEEDED when none came; CANCELLED once the queue is closed and
  // empty.
  absl::StatusOr<T> Pop(absl::Time deadline) {
    absl::MutexLock lock(&mutex_);
    auto may_go_on = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return closed_ || !items_.empty();
    };
    if (!mutex_.AwaitWithDeadline(absl::Condition(&may_go_on), deadline)) {
      return absl::DeadlineExceededError(
          absl::StrCat("nothing came into queue '", name_, "' before the deadline"));
    }
    if (items_.empty()) return Closed();
    return Take();
  }

  std::optional<T> TryPop() {
    absl::MutexLock lock(&mutex_);
    if (items_.empty()) return std::nullopt;
    return Take();
  }

  // Refuses items from here on and wakes every waiter; what is in the queue can still be popped.
  void Close() {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }

  bool closed() const {
    absl::MutexLock lock(&mutex_);
    return closed_;
  }

  size_t size() const {
    absl::MutexLock lock(&mutex_);
    return items_.size();
  }

  // Sum of what the waiting items count.
  size_t bytes() const {
    absl::MutexLock lock(&mutex_);
    return bytes_;
  }

 private:
  struct Entry {
    T item;
    size_t bytes;
  };

  bool HasRoom(size_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (items_.empty()) return true;
    return items_.size() < limits_.items && bytes_ <= limits_.bytes &&
           bytes <= limits_.bytes - bytes_;
  }

  void Append(T item, size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    items_.push_back(Entry{std::move(item), bytes});
    bytes_ += bytes;
  }

  T Take() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    T item = std::move(items_.front().item);
    bytes_ -= items_.front().bytes;
    items_.pop_front();
    return item;
  }

  absl::Status Closed() const {
    return absl::CancelledError(absl::StrCat("queue '", name_, "' is closed"));
  }

  const std::string name_;
  const QueueLimits limits_;
  mutable absl::Mutex mutex_;
  std::deque<Entry> items_ ABSL_GUARDED_BY(mutex_);
  size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace halfstep
