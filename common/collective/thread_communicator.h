// SPDX-License-Identifier: Apache-2.0
// ThreadCommunicator: ranks are threads of one process and read each other's memory.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/collective/communicator.h"

namespace halfstep {

// Where the ranks of one epoch meet. Thread-safe.
class ThreadGroup {
 public:
  // CHECKs that size is at least 1.
  ThreadGroup(int size, uint64_t epoch);

  int size() const { return size_; }
  uint64_t epoch() const { return epoch_; }

 private:
  friend class ThreadCommunicator;

  // Why nobody meets here any more, and the ranks to blame.
  struct Failure {
    absl::Status what;
    std::vector<int> peers;
  };

  // Hands in `operation`, which stays valid until the last Meet of this call, and waits for
  // everybody's. Nothing when all came and their calls fit.
  std::optional<Failure> Arrive(int rank, const Operation& operation);
  // Waits for everybody once more. Only after Arrive said nothing: no rank waits for anything but
  // the others' copying then, so that there is no deadline to keep.
  void Meet();
  // Ends the group for everybody who is not between Arrive and the last Meet. The first one counts.
  void Fail(const Failure& failure);
  const Operation& of(int rank) const { return *operations_[rank]; }

  void FailLocked(const Failure& failure) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Come() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);  // the last to come: lets all go on

  const int size_;
  const uint64_t epoch_;
  absl::Mutex mutex_;
  // Written by each rank for itself before it comes; read by the others after all have.
  std::vector<const Operation*> operations_;
  std::vector<CallRecord> records_;
  std::vector<bool> here_ ABSL_GUARDED_BY(mutex_);
  int come_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t meeting_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<Failure> failure_ ABSL_GUARDED_BY(mutex_);
};

// A rank that is destroyed counts as lost to those that wait for it. A deadline bounds the wait for
// the others to come; once all have, the call is only copying and adding, and is finished. Abort
// wakes every rank of the group at once.
class ThreadCommunicator : public Communicator {
 public:
  // The calling thread becomes the owner. Each rank of the group is made once.
  ThreadCommunicator(std::shared_ptr<ThreadGroup> group, int rank);
  ~ThreadCommunicator() override;

 private:
  absl::Status Run(const Operation& operation) override;
  void Discard(const absl::Status& failure) override;
  void Wake() override;

  void ReduceChunk(const Operation& operation, int64_t total, void* out) const;
  void GatherChunks(const Operation& operation) const;

  const std::shared_ptr<ThreadGroup> group_;
};

}  // namespace halfstep
