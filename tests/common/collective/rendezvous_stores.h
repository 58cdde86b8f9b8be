// SPDX-License-Identifier: Apache-2.0
// Rendezvous for the ranks of a test: threads of one process, or processes that share a folder.
#pragma once

#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/collective/rendezvous_store.h"

namespace halfstep {

class InProcessStore : public RendezvousStore {
 public:
  absl::Status Set(const std::string& key, const std::string& value) override {
    absl::MutexLock lock(&mutex_);
    values_[key] = value;
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> Get(const std::string& key, absl::Time deadline) override {
    absl::MutexLock lock(&mutex_);
    const auto set = [this, &key] {
      mutex_.AssertHeld();
      return values_.contains(key);
    };
    if (!mutex_.AwaitWithDeadline(absl::Condition(&set), deadline)) {
      return absl::DeadlineExceededError(key);
    }
    return values_[key];
  }

 private:
  absl::Mutex mutex_;
  std::map<std::string, std::string> values_ ABSL_GUARDED_BY(mutex_);
};

// Looks for the file of a key a thousand times a second.
class FolderStore : public RendezvousStore {
 public:
  explicit FolderStore(std::string folder) : folder_(std::move(folder)) {}

  absl::Status Set(const std::string& key, const std::string& value) override {
    return WriteFileAtomic(PathOf(key), value);
  }

  absl::StatusOr<std::string> Get(const std::string& key, absl::Time deadline) override {
    for (;;) {
      absl::StatusOr<std::string> value = ReadFile(PathOf(key), 1 << 16);
      if (value.ok() || !absl::IsNotFound(value.status())) return value;
      if (absl::Now() >= deadline) return absl::DeadlineExceededError(key);
      absl::SleepFor(absl::Milliseconds(1));
    }
  }

 private:
  std::string PathOf(const std::string& key) const {
    return absl::StrCat(folder_, "/", absl::StrReplaceAll(key, {{"/", "_"}}));
  }

  const std::string folder_;
};

}  // namespace halfstep
