// SPDX-License-Identifier: Apache-2.0
#include "common/collective/thread_communicator.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/collective/rank_tree.h"
#include "kernels/check.h"

namespace halfstep {
namespace {

void Copy(const void* from, int64_t elements, DType dtype, void* to) {
  if (elements > 0 && from != to) std::memcpy(to, from, elements * SizeOf(dtype));
}

const char* At(const void* data, int64_t element, DType dtype) {
  return static_cast<const char*>(data) + element * static_cast<int64_t>(SizeOf(dtype));
}

char* At(void* data, int64_t element, DType dtype) {
  return static_cast<char*>(data) + element * static_cast<int64_t>(SizeOf(dtype));
}

}  // namespace

ThreadGroup::ThreadGroup(int size, uint64_t epoch)
    : size_(size), epoch_(epoch), operations_(size), records_(size), here_(size) {
  HALFSTEP_CHECK_GE(size, 1);
}

std::optional<ThreadGroup::Failure> ThreadGroup::Arrive(int rank, const Operation& operation) {
  absl::MutexLock lock(&mutex_);
  if (failure_) return failure_;
  operations_[rank] = &operation;
  records_[rank] = RecordOf(operation, {rank, size_, epoch_});
  here_[rank] = true;
  const uint64_t meeting = meeting_;
  if (come_ + 1 == size_) {
    if (const std::optional<int> other = FindMismatch(records_, rank)) {
      FailLocked({MismatchOf(records_, rank, *other), {*other}});
      return failure_;
    }
  }
  if (Come()) return std::nullopt;
  const auto over = [this, meeting] {
    mutex_.AssertHeld();
    return meeting_ != meeting || failure_.has_value();
  };
  mutex_.AwaitWithDeadline(absl::Condition(&over), operation.call->deadline);
  if (meeting_ != meeting) return std::nullopt;
  if (!failure_) {
    std::vector<int> absent;
    for (int other = 0; other < size_; ++other) {
      if (!here_[other]) absent.push_back(other);
    }
    FailLocked({TimeoutOf(absent), absent});
  }
  return failure_;
}

void ThreadGroup::Meet() {
  absl::MutexLock lock(&mutex_);
  const uint64_t meeting = meeting_;
  if (Come()) return;
  const auto over = [this, meeting] {
    mutex_.AssertHeld();
    return meeting_ != meeting;
  };
  mutex_.Await(absl::Condition(&over));
}

void ThreadGroup::Fail(const Failure& failure) {
  absl::MutexLock lock(&mutex_);
  FailLocked(failure);
}

void ThreadGroup::FailLocked(const Failure& failure) {
  if (!failure_) failure_ = failure;
}

bool ThreadGroup::Come() {
  if (++come_ < size_) return false;
  come_ = 0;
  ++meeting_;
  here_.assign(size_, false);
  return true;
}

ThreadCommunicator::ThreadCommunicator(std::shared_ptr<ThreadGroup> group, int rank)
    : Communicator({rank, group->size(), group->epoch()}, DeviceType::kCpu),
      group_(std::move(group)) {}

ThreadCommunicator::~ThreadCommunicator() {
  group_->Fail({LostPeer(rank(), "its communicator was destroyed"), {rank()}});
}

void ThreadCommunicator::Discard(const absl::Status&) {}  // Who failed has told the group.

void ThreadCommunicator::Wake() {
  group_->Fail({Error(absl::StatusCode::kAborted, "COMMUNICATOR_ABORTED",
                      absl::StrCat("rank ", rank(), " aborted it: form a new communicator")),
                {rank()}});
}

absl::Status ThreadCommunicator::Run(const Operation& operation) {
  if (const auto failure = group_->Arrive(rank(), operation)) {
    if (aborted()) return AbortedError(operation);
    return CollectiveError(operation, membership(), failure->what, failure->peers);
  }
  switch (operation.kind) {
    case OperationKind::kForm:
    case OperationKind::kBarrier:
      return absl::OkStatus();
    case OperationKind::kBroadcast:
      Copy(group_->of(operation.root).send, operation.count, operation.dtype, operation.receive);
      break;
    case OperationKind::kAllReduce: {
      // Each rank reduces its chunk in place: nobody else reads that chunk of this rank's data.
      const Chunk mine = ChunkOf(operation.count, size(), rank());
      ReduceChunk(operation, operation.count, At(operation.receive, mine.begin, operation.dtype));
      group_->Meet();
      GatherChunks(operation);
      break;
    }
    case OperationKind::kReduceScatter:
      ReduceChunk(operation, operation.count * size(), operation.receive);
      break;
    case OperationKind::kAllGather:
      for (int peer = 0; peer < size(); ++peer) {
        Copy(group_->of(peer).send, operation.count, operation.dtype,
             At(operation.receive, operation.count * peer, operation.dtype));
      }
      break;
  }
  group_->Meet();  // Nobody's memory is read any more.
  return absl::OkStatus();
}

void ThreadCommunicator::ReduceChunk(const Operation& operation, int64_t total, void* out) const {
  const Chunk mine = ChunkOf(total, size(), rank());
  if (mine.count() == 0) return;
  std::vector<const void*> shards(size());
  for (int peer = 0; peer < size(); ++peer) {
    shards[peer] = At(group_->of(peer).send, mine.begin, operation.dtype);
  }
  ReduceShards({shards, mine.count(), operation.dtype}, operation.reduce, out);
}

void ThreadCommunicator::GatherChunks(const Operation& operation) const {
  for (int peer = 0; peer < size(); ++peer) {
    const Chunk chunk = ChunkOf(operation.count, size(), peer);
    Copy(At(group_->of(peer).send, chunk.begin, operation.dtype), chunk.count(), operation.dtype,
         At(operation.receive, chunk.begin, operation.dtype));
  }
}

}  // namespace halfstep
