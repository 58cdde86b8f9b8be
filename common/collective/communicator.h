// SPDX-License-Identifier: Apache-2.0
// Communicator: the collective operations of a fixed set of ranks, over threads of one process
// (thread_communicator.h), over TCP (gloo_communicator.h) or over GPUs (nccl_communicator.h).
//
// Calls block: each returns when this rank's part is done, when its deadline has come, or when it
// has failed. Where a library works asynchronously, completion is polled inside the call. A caller
// that wants overlap gives a communicator a thread of its own.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/collective/operation.h"
#include "kernels/device.h"
#include "kernels/tensor.h"

namespace halfstep {

// Every rank makes the same calls in the same order, with the same counts, dtypes, roots, labels
// and versions. A communicator belongs to the thread that formed it, which alone may call it and
// destroys it; only Abort may come from elsewhere.
//
// Sums add in the order of a fixed binary tree over ranks (rank_tree.h), element by element,
// whatever the size of the data: FP16 and BF16 are widened to FP32, added there, and rounded once.
// NcclCommunicator keeps that order when it is given a ShardReducer.
//
// Errors name operation, label, version, bytes, rank and epoch, in the message and as metadata,
// and as `peers` the ranks that were waited for, where that can be known. Reasons:
//   COLLECTIVE_ARGUMENT        INVALID_ARGUMENT: this rank's arguments cannot be meant
//   COLLECTIVE_FOREIGN_THREAD  FAILED_PRECONDITION: not called from the owner's thread
//   COLLECTIVE_TIMEOUT         DEADLINE_EXCEEDED: a rank did not come, or stopped in the middle
//   PEER_LOST                  UNAVAILABLE: a rank died or left
//   COLLECTIVE_MISMATCH        FAILED_PRECONDITION: the ranks' calls do not fit each other
//   COMMUNICATOR_ABORTED       ABORTED: Abort was called here or on a peer
//   COLLECTIVE_TRANSPORT       INTERNAL: the library below failed otherwise; its words follow
//   COMMUNICATOR_UNUSABLE      FAILED_PRECONDITION: an earlier call failed
// After any of them but the first two the communicator is unusable, its buffers hold nothing of
// use, and what it held of the system is released: form another one, with another epoch.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return membership_.rank; }
  int size() const { return membership_.size; }
  uint64_t epoch() const { return membership_.epoch; }

  // The root's `data` on every rank.
  absl::Status Broadcast(Tensor data, int root, const CollectiveCall& call);

  // `data` becomes the sum or maximum over ranks, the same bits on every rank. For all dtypes but
  // uint8, which is bytes. A maximum with a NaN among its inputs is not specified.
  absl::Status AllReduce(Tensor data, ReduceOp op, const CollectiveCall& call);

  // `shard` becomes the sum over ranks of the part of `all` that is this rank's: elements
  // [rank, rank + 1) * shard.elements(). all.elements() is size() * shard.elements(). `shard` may
  // be exactly that part of `all`, and overlaps it in no other way. `all` keeps its other parts.
  absl::Status ReduceScatter(ConstTensor all, Tensor shard, const CollectiveCall& call);

  // `all` becomes every rank's `shard`, in the order of ranks. `shard` may be exactly this rank's
  // part of `all`.
  absl::Status AllGather(ConstTensor shard, Tensor all, const CollectiveCall& call);

  // Returns when every rank has come.
  absl::Status Barrier(const CollectiveCall& call);

  // From any thread, and at any time in the communicator's life. A call in progress here returns
  // COMMUNICATOR_ABORTED soon, and so does every later one; peers learn of it as their transport
  // allows: at once, or by their deadlines. `reason` goes into the errors.
  void Abort(const std::string& reason);

 protected:
  // `device`: where the tensors must be.
  Communicator(const Membership& membership, DeviceType device);

  // The operation, whose arguments are checked, on the owner's thread. Returns with COMMUNICATOR_
  // ABORTED soon after Wake.
  virtual absl::Status Run(const Operation& operation) = 0;
  // After a failed Run, on the owner's thread, once: tells the peers as far as possible and lets go
  // of what the communicator holds. `failure` is what Run returned.
  virtual void Discard(const absl::Status& failure) = 0;
  // After Abort, on its thread.
  virtual void Wake() = 0;

  const Membership& membership() const { return membership_; }
  bool aborted() const { return aborted_.load(std::memory_order_acquire); }
  bool OnOwnerThread() const { return std::this_thread::get_id() == owner_; }
  // What a Run that saw aborted() returns.
  absl::Status AbortedError(const Operation& operation) const;

 private:
  absl::Status Execute(Operation operation);
  absl::Status CheckTensor(const Operation& operation, const ConstTensor& tensor) const;

  const Membership membership_;
  const DeviceType device_;
  const std::thread::id owner_;
  uint64_t sequence_ = 0;
  absl::Status failure_;
  std::atomic<bool> abort_claimed_{false};
  std::atomic<bool> aborted_{false};
  std::string abort_reason_;  // written before aborted_
};

}  // namespace halfstep
