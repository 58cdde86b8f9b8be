// SPDX-License-Identifier: Apache-2.0
#include "common/collective/operation.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/error_reason.h"

namespace halfstep {
namespace {

static_assert(std::is_trivially_copyable_v<CallRecord>);

constexpr uint64_t kMagic = 0x68616c6673746570;  // "halfstep"

// A record may come from a peer that is not one of ours, so its label may have no end.
std::string Label(const CallRecord& record) {
  return std::string(record.label, strnlen(record.label, sizeof(record.label)));
}

auto Fields(const CallRecord& record) {
  return std::tuple(record.magic, record.epoch, record.sequence, record.version, record.count,
                    record.size, record.root, record.kind, record.dtype, record.reduce,
                    Label(record));
}

}  // namespace

const char* Name(OperationKind kind) {
  switch (kind) {
    case OperationKind::kForm:
      return "form";
    case OperationKind::kBroadcast:
      return "broadcast";
    case OperationKind::kAllReduce:
      return "all_reduce";
    case OperationKind::kReduceScatter:
      return "reduce_scatter";
    case OperationKind::kAllGather:
      return "all_gather";
    case OperationKind::kBarrier:
      return "barrier";
  }
  return "?";
}

int64_t TotalElements(const Operation& operation, int size) {
  const bool sharded = operation.kind == OperationKind::kReduceScatter ||
                       operation.kind == OperationKind::kAllGather;
  return sharded ? operation.count * size : operation.count;
}

CallRecord RecordOf(const Operation& operation, const Membership& membership) {
  CallRecord record;
  record.magic = kMagic;
  record.epoch = membership.epoch;
  record.sequence = operation.sequence;
  record.version = operation.call->version;
  record.count = operation.count;
  record.size = membership.size;
  record.root = operation.root;
  record.kind = operation.kind;
  record.dtype = operation.dtype;
  record.reduce = operation.reduce;
  const std::string& label = operation.call->label;
  std::memcpy(record.label, label.data(), std::min(label.size(), sizeof(record.label) - 1));
  return record;
}

std::optional<int> FindMismatch(std::span<const CallRecord> records, int rank) {
  for (size_t i = 0; i < records.size(); ++i) {
    if (Fields(records[i]) != Fields(records[rank])) return static_cast<int>(i);
  }
  return std::nullopt;
}

std::string Describe(const CallRecord& record) {
  std::string text = Name(record.kind);
  switch (record.kind) {
    case OperationKind::kForm:
    case OperationKind::kBarrier:
      break;
    case OperationKind::kBroadcast:
      absl::StrAppend(&text, " of ", record.count, " ", Name(record.dtype), " from rank ",
                      record.root);
      break;
    case OperationKind::kAllReduce:
    case OperationKind::kReduceScatter:
      absl::StrAppend(&text, " of ", record.count, " ", Name(record.dtype),
                      record.reduce == ReduceOp::kSum ? " (sum)" : " (maximum)");
      break;
    case OperationKind::kAllGather:
      absl::StrAppend(&text, " of ", record.count, " ", Name(record.dtype));
      break;
  }
  return absl::StrCat(text, " for \"", Label(record), "\", version ", record.version, ", call ",
                      record.sequence, " of ", record.size, " ranks in epoch ", record.epoch);
}

absl::Status CollectiveError(const Operation& operation, const Membership& membership,
                             absl::Status what, const std::vector<int>& peers) {
  const int64_t bytes =
      TotalElements(operation, membership.size) * static_cast<int64_t>(SizeOf(operation.dtype));
  ErrorReason reason{ReasonOf(what), {}};
  reason.metadata = {{"operation", Name(operation.kind)},
                     {"label", operation.call->label},
                     {"version", absl::StrCat(operation.call->version)},
                     {"sequence", absl::StrCat(operation.sequence)},
                     {"bytes", absl::StrCat(bytes)},
                     {"rank", absl::StrCat(membership.rank)},
                     {"size", absl::StrCat(membership.size)},
                     {"epoch", absl::StrCat(membership.epoch)}};
  if (!peers.empty()) reason.metadata["peers"] = absl::StrJoin(peers, ",");
  const std::string place = absl::StrCat(
      Name(operation.kind), " \"", operation.call->label, "\" (version ", operation.call->version,
      ", call ", operation.sequence, ", ", bytes, " bytes) on rank ", membership.rank, " of ",
      membership.size, ", epoch ", membership.epoch);
  return WithReason(WithContext(what, place), std::move(reason));
}

absl::Status TimeoutOf(const std::vector<int>& peers) {
  return Error(absl::StatusCode::kDeadlineExceeded, "COLLECTIVE_TIMEOUT",
               absl::StrCat("the deadline came while waiting for ",
                            peers.empty() ? "its peers" : ShowRanks(peers),
                            ": see whether it runs; the others go on with a new communicator"));
}

absl::Status LostPeer(int peer, const std::string& detail) {
  return Error(absl::StatusCode::kUnavailable, "PEER_LOST",
               absl::StrCat("rank ", peer, " is gone (", detail,
                            "): the others go on with a new communicator"));
}

absl::Status MismatchOf(std::span<const CallRecord> records, int rank, int other) {
  return Error(absl::StatusCode::kFailedPrecondition, "COLLECTIVE_MISMATCH",
               absl::StrCat("rank ", other, " calls ", Describe(records[other]), "; rank ", rank,
                            " calls ", Describe(records[rank]),
                            ": every rank must make the same calls in the same order"));
}

std::string ShowRanks(const std::vector<int>& ranks) {
  return absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ", absl::StrJoin(ranks, ", "));
}

}  // namespace halfstep
