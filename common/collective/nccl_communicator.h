// SPDX-License-Identifier: Apache-2.0
// NcclCommunicator: ranks are GPUs. Compiled where CMake finds nccl.h; whoever links it links NCCL
// and the CUDA runtime, or the fake of both (tests/common/collective/fake_nccl.h).
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/collective/communicator.h"
#include "common/collective/rank_tree.h"
#include "kernels/tensor.h"

namespace halfstep {

// OK unless the environment would take NCCL out of our hands. FAILED_PRECONDITION with reason
// NCCL_COMM_ID_SET (the id of every communicator would be a constant that anybody knows) or
// NCCL_BLOCKING_FORCED (NCCL_COMM_BLOCKING other than 0: deadlines could not be kept).
absl::Status CheckNcclEnvironment();

// What lets a process into a communicator: a secret, for authenticated channels only. It has no
// way into a log: nothing prints it.
class NcclId {
 public:
  // A new one; its root listens in this process while ranks join. Errors of CheckNcclEnvironment,
  // and COLLECTIVE_TRANSPORT.
  static absl::StatusOr<NcclId> Create();
  // From bytes() of another process. INVALID_ARGUMENT for another length.
  static absl::StatusOr<NcclId> FromBytes(absl::string_view bytes);

  std::string bytes() const { return std::string(id_.internal, sizeof(id_.internal)); }

 private:
  friend class NcclCommunicator;
  ncclUniqueId id_{};
};

// Enqueues on `stream`, with no wait: out[i] = the sum over ranks of input.shards[r][i] in the
// order of ReduceShards; all in device memory; `out` may be one of the shards.
using ShardReducer =
    std::function<absl::Status(const RankShards& input, void* out, cudaStream_t stream)>;

struct NcclOptions {
  Membership membership;
  NcclId id;  // the same to all ranks, of this epoch only
  // Shown by NCCL's diagnostics, with the epoch.
  std::string name = "halfstep";
  // All work is enqueued here, after what the caller has: inputs are made on it, or it waits for
  // them. Outlives the communicator.
  cudaStream_t stream = nullptr;
  // Device memory, of any dtype, of at least 4 KiB, which outlives the communicator. With a reducer
  // it holds the other ranks' shards: size - 1 times a slice of the data; the larger the better,
  // and of the same size on every rank, which nothing checks.
  Tensor scratch;
  // With it, sums keep the order of ranks that every other Communicator keeps: shards are exchanged
  // and added by it. Without it NCCL adds, in an order that is the same in every run on the same
  // GPUs but depends on their number and topology.
  ShardReducer reducer;
  // Thread blocks that NCCL may take from the GPU's work; 0: as many as it likes.
  int max_ctas = 0;
  // For a clean end in the destructor; after it the communicator is aborted.
  absl::Duration close_timeout = absl::Seconds(10);
};

// Works by a non-blocking NCCL communicator whose errors and completion are polled, so that
// deadlines hold: NCCL has none. A call returns when its work is done on the GPU. NCCL does not say
// whom it waits for (errors have no peers), and does not find calls that do not fit each other:
// those wait for their deadline, or give wrong results. Abort from another thread only leaves word:
// the owner aborts in the call that it is in, or at the next one or the destructor. NCCL's own
// report of a peer's death (ncclRemoteError) is PEER_LOST, of misuse COLLECTIVE_MISMATCH.
class NcclCommunicator : public Communicator {
 public:
  // Collective, on the thread that will own it, with the device of `stream` current. Errors:
  // CheckNcclEnvironment's, COLLECTIVE_ARGUMENT, and Communicator's; `call.deadline` counts.
  static absl::StatusOr<std::unique_ptr<NcclCommunicator>> Form(const NcclOptions& options,
                                                                const CollectiveCall& call);
  // CHECKs that it is the owner's thread.
  ~NcclCommunicator() override;

 private:
  explicit NcclCommunicator(const NcclOptions& options);

  absl::Status Run(const Operation& operation) override;
  void Discard(const absl::Status& failure) override;
  void Wake() override {}  // The owner polls.

  absl::Status Init(const Operation& form);
  absl::Status Enqueue(const Operation& operation);
  absl::Status ReduceInRankOrder(const Operation& operation);
  absl::Status ExchangeSlice(const Operation& operation, int64_t begin, int64_t slice);
  absl::Status ReduceSlice(const Operation& operation, int64_t begin, int64_t slice);
  absl::Status GatherChunks(const Operation& operation);

  // What NCCL or CUDA returned for `operation`; waits until NCCL has taken the work.
  absl::Status Accept(const Operation& operation, ncclResult_t result);
  absl::Status Check(const Operation& operation, cudaError_t result) const;
  // Polls until `done` is true. Also fails for an Abort, an error of NCCL's, and the deadline.
  absl::Status Poll(const Operation& operation, const std::function<absl::StatusOr<bool>()>& done);
  absl::StatusOr<bool> Idle(const Operation& operation);  // NCCL is not busy with a call
  absl::Status NcclError(const Operation& operation, ncclResult_t result) const;
  void Close();

  const NcclOptions options_;
  const std::string name_;
  ncclComm_t comm_ = nullptr;
  cudaEvent_t done_ = nullptr;
};

}  // namespace halfstep
