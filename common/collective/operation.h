// SPDX-License-Identifier: Apache-2.0
// What the backends share: one collective call as a value, the record of it that ranks compare, and
// the errors that name it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/dtype.h"

namespace halfstep {

enum class ReduceOp : uint8_t { kSum, kMax };

// One rank of a communicator. `epoch` tells communicators of the same ranks apart: each one that is
// formed has another.
struct Membership {
  int rank = 0;
  int size = 1;
  uint64_t epoch = 0;
};

// What a collective is for, and how long it may take. Label and version are the same on every rank.
struct CollectiveCall {
  std::string label;     // the phase, in the caller's words: "gradients of layer 3"
  uint64_t version = 0;  // of the weights, or the step
  absl::Time deadline;   // by which every rank must have come and be done
};

enum class OperationKind : uint8_t {
  kForm,
  kBroadcast,
  kAllReduce,
  kReduceScatter,
  kAllGather,
  kBarrier
};

// "form", "broadcast", "all_reduce" ...
const char* Name(OperationKind kind);

struct Operation {
  OperationKind kind = OperationKind::kBarrier;
  DType dtype = DType::kUInt8;
  ReduceOp reduce = ReduceOp::kSum;
  int root = 0;
  int64_t count = 0;      // elements of `data`, or of one shard
  uint64_t sequence = 0;  // of the call in this communicator, from 1
  const void* send = nullptr;
  void* receive = nullptr;
  const CollectiveCall* call = nullptr;  // outlives the operation
};

// Elements that the operation is about on one rank: `count`, or for scatter and gather `size` times
// it.
int64_t TotalElements(const Operation& operation, int size);

// What ranks compare before they move data. Trivially copyable: it travels as it lies in memory,
// between machines of one byte order.
struct CallRecord {
  uint64_t magic = 0;
  uint64_t epoch = 0;
  uint64_t sequence = 0;
  uint64_t version = 0;
  int64_t count = 0;
  int32_t size = 0;
  int32_t root = 0;
  OperationKind kind = OperationKind::kBarrier;
  DType dtype = DType::kUInt8;
  ReduceOp reduce = ReduceOp::kSum;
  char label[45] = {};  // its beginning, ended by a zero
};

CallRecord RecordOf(const Operation& operation, const Membership& membership);

// Records by rank; those equal to this rank's fit. The first that does not, if any.
std::optional<int> FindMismatch(std::span<const CallRecord> records, int rank);

// "all_reduce of 12 fp32 (sum) for "gradients", version 3, call 7".
std::string Describe(const CallRecord& record);

// An error about `operation` on this rank. `peers`: the ranks it is about, empty when not known.
absl::Status CollectiveError(const Operation& operation, const Membership& membership,
                             absl::Status what, const std::vector<int>& peers);

// What `what` of CollectiveError says in these cases.
absl::Status TimeoutOf(const std::vector<int>& peers);
absl::Status LostPeer(int peer, const std::string& detail);
absl::Status MismatchOf(std::span<const CallRecord> records, int rank, int other);

// "rank 2", "ranks 1, 3".
std::string ShowRanks(const std::vector<int>& ranks);

}  // namespace halfstep
