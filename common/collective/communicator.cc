// SPDX-License-Identifier: Apache-2.0
#include "common/collective/communicator.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "kernels/check.h"

namespace halfstep {
namespace {

absl::Status BadArgument(const std::string& message) {
  return Error(absl::StatusCode::kInvalidArgument, "COLLECTIVE_ARGUMENT", message);
}

absl::Status CheckReducible(DType dtype) {
  if (dtype != DType::kUInt8) return absl::OkStatus();
  return BadArgument("uint8 is bytes and has no sum and no maximum: give the type of the numbers");
}

}  // namespace

Communicator::Communicator(const Membership& membership, DeviceType device)
    : membership_(membership), device_(device), owner_(std::this_thread::get_id()) {
  HALFSTEP_CHECK_GE(membership.rank, 0);
  HALFSTEP_CHECK_LT(membership.rank, membership.size);
}

absl::Status Communicator::Broadcast(Tensor data, int root, const CollectiveCall& call) {
  Operation operation{.kind = OperationKind::kBroadcast,
                      .dtype = data.dtype(),
                      .root = root,
                      .count = data.elements(),
                      .send = data.data(),
                      .receive = data.data(),
                      .call = &call};
  HALFSTEP_RETURN_IF_ERROR(CheckTensor(operation, data));
  if (root < 0 || root >= size()) {
    return CollectiveError(operation, membership_,
                           BadArgument(absl::StrCat("the root is rank ", root)), {});
  }
  return Execute(operation);
}

absl::Status Communicator::AllReduce(Tensor data, ReduceOp op, const CollectiveCall& call) {
  Operation operation{.kind = OperationKind::kAllReduce,
                      .dtype = data.dtype(),
                      .reduce = op,
                      .count = data.elements(),
                      .send = data.data(),
                      .receive = data.data(),
                      .call = &call};
  HALFSTEP_RETURN_IF_ERROR(CheckTensor(operation, data));
  if (const absl::Status status = CheckReducible(data.dtype()); !status.ok()) {
    return CollectiveError(operation, membership_, status, {});
  }
  return Execute(operation);
}

absl::Status Communicator::ReduceScatter(ConstTensor all, Tensor shard,
                                         const CollectiveCall& call) {
  Operation operation{.kind = OperationKind::kReduceScatter,
                      .dtype = shard.dtype(),
                      .count = shard.elements(),
                      .send = all.data(),
                      .receive = shard.data(),
                      .call = &call};
  HALFSTEP_RETURN_IF_ERROR(CheckTensor(operation, all));
  HALFSTEP_RETURN_IF_ERROR(CheckTensor(operation, shard));
  absl::Status status = CheckReducible(shard.dtype());
  if (all.dtype() != shard.dtype() || all.elements() != shard.elements() * size()) {
    status = BadArgument(absl::StrCat("a shard of ", shard.elements(), " ", Name(shard.dtype()),
                                      " on each rank is not what ", all.elements(), " ",
                                      Name(all.dtype()), " are cut into"));
  }
  if (!status.ok()) return CollectiveError(operation, membership_, status, {});
  return Execute(operation);
}

absl::Status Communicator::AllGather(ConstTensor shard, Tensor all, const CollectiveCall& call) {
  Operation operation{.kind = OperationKind::kAllGather,
                      .dtype = shard.dtype(),
                      .count = shard.elements(),
                      .send = shard.data(),
                      .receive = all.data(),
                      .call = &call};
  HALFSTEP_RETURN_IF_ERROR(CheckTensor(operation, all));
  HALFSTEP_RETURN_IF_ERROR(CheckTensor(operation, shard));
  if (all.dtype() != shard.dtype() || all.elements() != shard.elements() * size()) {
    return CollectiveError(
        operation, membership_,
        BadArgument(absl::StrCat("shards of ", shard.elements(), " ", Name(shard.dtype()),
                                 " do not make ", all.elements(), " ", Name(all.dtype()))),
        {});
  }
  return Execute(operation);
}

absl::Status Communicator::Barrier(const CollectiveCall& call) {
  return Execute(Operation{.kind = OperationKind::kBarrier, .call = &call});
}

void Communicator::Abort(const std::string& reason) {
  if (abort_claimed_.exchange(true)) return;
  abort_reason_ = reason;
  aborted_.store(true, std::memory_order_release);
  Wake();
}

absl::Status Communicator::AbortedError(const Operation& operation) const {
  return CollectiveError(
      operation, membership_,
      Error(absl::StatusCode::kAborted, "COMMUNICATOR_ABORTED",
            absl::StrCat("it was aborted (", abort_reason_, "): form a new communicator")),
      {});
}

absl::Status Communicator::CheckTensor(const Operation& operation,
                                       const ConstTensor& tensor) const {
  if (tensor.empty() || tensor.device().type == device_) return absl::OkStatus();
  return CollectiveError(
      operation, membership_,
      BadArgument(absl::StrCat(
          "the tensor is in memory of the ", device_ == DeviceType::kCpu ? "GPU" : "CPU",
          " and this communicator moves the ", device_ == DeviceType::kCpu ? "CPU" : "GPU", "'s")),
      {});
}

absl::Status Communicator::Execute(Operation operation) {
  if (!OnOwnerThread()) {
    return CollectiveError(operation, membership_,
                           Error(absl::StatusCode::kFailedPrecondition, "COLLECTIVE_FOREIGN_THREAD",
                                 "this is not the thread that formed the communicator: call it "
                                 "from there, or form one on this thread"),
                           {});
  }
  operation.sequence = ++sequence_;
  if (!failure_.ok() && !aborted()) {
    return CollectiveError(
        operation, membership_,
        Error(absl::StatusCode::kFailedPrecondition, "COMMUNICATOR_UNUSABLE",
              absl::StrCat("an earlier call failed: form a new communicator with another epoch. ",
                           "It was: ", std::string(failure_.message()))),
        {});
  }
  absl::Status status = aborted() ? AbortedError(operation) : Run(operation);
  if (status.ok() && aborted()) status = AbortedError(operation);
  if (!status.ok() && failure_.ok()) {
    failure_ = status;
    Discard(status);
  }
  return status;
}

}  // namespace halfstep
