// SPDX-License-Identifier: Apache-2.0
#include "common/collective/nccl_communicator.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "kernels/check.h"

namespace halfstep {
namespace {

constexpr size_t kLeastScratch = 4096;
// Polling: at once for a while, since most calls take some tens of microseconds; then ever rarer.
constexpr int kSpins = 200;
constexpr absl::Duration kLongestNap = absl::Microseconds(200);
constexpr absl::Duration kLongestDrain = absl::Milliseconds(500);

ncclDataType_t NcclType(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return ncclFloat16;
    case DType::kBFloat16:
      return ncclBfloat16;
    case DType::kFloat32:
      return ncclFloat32;
    case DType::kFloat64:
      return ncclFloat64;
    case DType::kInt32:
      return ncclInt32;
    case DType::kInt64:
      return ncclInt64;
    case DType::kUInt8:
      return ncclUint8;
  }
  return ncclUint8;
}

char* At(const void* data, int64_t element, DType dtype) {
  return static_cast<char*>(const_cast<void*>(data)) +
         element * static_cast<int64_t>(SizeOf(dtype));
}

}  // namespace

absl::Status CheckNcclEnvironment() {
  if (std::getenv("NCCL_COMM_ID") != nullptr) {
    return Error(absl::StatusCode::kFailedPrecondition, "NCCL_COMM_ID_SET",
                 "NCCL_COMM_ID is set, with which NCCL lets anybody into a communicator that can "
                 "reach its port: unset it; the ranks get a secret id over their own channel");
  }
  const char* const blocking = std::getenv("NCCL_COMM_BLOCKING");
  if (blocking != nullptr && std::strcmp(blocking, "0") != 0) {
    return Error(absl::StatusCode::kFailedPrecondition, "NCCL_BLOCKING_FORCED",
                 absl::StrCat("NCCL_COMM_BLOCKING=", blocking,
                              " makes NCCL's calls block, so that no deadline could be kept and "
                              "nothing aborted: unset it"));
  }
  return absl::OkStatus();
}

absl::StatusOr<NcclId> NcclId::Create() {
  HALFSTEP_RETURN_IF_ERROR(CheckNcclEnvironment());
  NcclId id;
  const ncclResult_t result = ncclGetUniqueId(&id.id_);
  if (result == ncclSuccess) return id;
  return Error(absl::StatusCode::kInternal, "COLLECTIVE_TRANSPORT",
               absl::StrCat("NCCL could not make a unique id: ", ncclGetErrorString(result),
                            ": see whether NCCL_SOCKET_IFNAME names an interface of this machine"));
}

absl::StatusOr<NcclId> NcclId::FromBytes(absl::string_view bytes) {
  NcclId id;
  if (bytes.size() != sizeof(id.id_.internal)) {
    return Error(
        absl::StatusCode::kInvalidArgument, "COLLECTIVE_ARGUMENT",
        absl::StrCat("an id of NCCL has ", sizeof(id.id_.internal), " bytes, not ", bytes.size()));
  }
  std::memcpy(id.id_.internal, bytes.data(), bytes.size());
  return id;
}

absl::StatusOr<std::unique_ptr<NcclCommunicator>> NcclCommunicator::Form(
    const NcclOptions& options, const CollectiveCall& call) {
  HALFSTEP_RETURN_IF_ERROR(CheckNcclEnvironment());
  const Operation form{.kind = OperationKind::kForm, .call = &call};
  if (options.scratch.bytes() < kLeastScratch ||
      options.scratch.device().type != DeviceType::kCuda) {
    return CollectiveError(
        form, options.membership,
        Error(absl::StatusCode::kInvalidArgument, "COLLECTIVE_ARGUMENT",
              absl::StrCat("its scratch is ", options.scratch.bytes(), " bytes: give at least ",
                           kLeastScratch, " bytes of the GPU's memory")),
        {});
  }
  std::unique_ptr<NcclCommunicator> communicator(new NcclCommunicator(options));
  const absl::Status status = communicator->Init(form);
  if (!status.ok()) {
    communicator->Discard(status);
    return status;
  }
  return communicator;
}

NcclCommunicator::NcclCommunicator(const NcclOptions& options)
    : Communicator(options.membership, DeviceType::kCuda),
      options_(options),
      name_(absl::StrCat(options.name, "/epoch ", options.membership.epoch)) {}

absl::Status NcclCommunicator::Init(const Operation& form) {
  HALFSTEP_RETURN_IF_ERROR(Check(form, cudaEventCreateWithFlags(&done_, cudaEventDisableTiming)));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.commName = name_.c_str();
  if (options_.max_ctas > 0) config.maxCTAs = options_.max_ctas;
  return Accept(form, ncclCommInitRankConfig(&comm_, size(), options_.id.id_, rank(), &config));
}

NcclCommunicator::~NcclCommunicator() {
  HALFSTEP_CHECK(OnOwnerThread());
  Close();
  if (done_ != nullptr) cudaEventDestroy(done_);
}

void NcclCommunicator::Close() {
  if (comm_ == nullptr) return;
  const CollectiveCall call{"close", 0, absl::Now() + options_.close_timeout};
  const Operation operation{.call = &call};
  if (!aborted() && Accept(operation, ncclCommFinalize(comm_)).ok()) {
    ncclCommDestroy(std::exchange(comm_, nullptr));
  } else {
    Discard(absl::OkStatus());
  }
}

void NcclCommunicator::Discard(const absl::Status&) {
  if (comm_ == nullptr) return;
  ncclCommAbort(std::exchange(comm_, nullptr));
  // What was enqueued behind the aborted work still runs, on memory that the caller may free now.
  if (cudaEventRecord(done_, options_.stream) != cudaSuccess) return;
  const absl::Time deadline = absl::Now() + kLongestDrain;
  while (cudaEventQuery(done_) == cudaErrorNotReady && absl::Now() < deadline) {
    absl::SleepFor(absl::Microseconds(20));
  }
}

absl::Status NcclCommunicator::Run(const Operation& operation) {
  HALFSTEP_RETURN_IF_ERROR(Enqueue(operation));
  HALFSTEP_RETURN_IF_ERROR(Check(operation, cudaEventRecord(done_, options_.stream)));
  return Poll(operation, [&]() -> absl::StatusOr<bool> {
    const cudaError_t result = cudaEventQuery(done_);
    if (result == cudaErrorNotReady) return false;
    HALFSTEP_RETURN_IF_ERROR(Check(operation, result));
    return true;
  });
}

absl::Status NcclCommunicator::Enqueue(const Operation& operation) {
  const ncclDataType_t type = NcclType(operation.dtype);
  const ncclRedOp_t op = operation.reduce == ReduceOp::kSum ? ncclSum : ncclMax;
  const bool in_rank_order = options_.reducer && operation.reduce == ReduceOp::kSum;
  switch (operation.kind) {
    case OperationKind::kForm:
      break;
    case OperationKind::kBarrier:
      return Accept(operation, ncclAllReduce(options_.scratch.data(), options_.scratch.data(), 1,
                                             ncclUint8, ncclMax, comm_, options_.stream));
    case OperationKind::kBroadcast:
      return Accept(operation, ncclBroadcast(operation.send, operation.receive, operation.count,
                                             type, operation.root, comm_, options_.stream));
    case OperationKind::kAllReduce:
      if (in_rank_order) {
        HALFSTEP_RETURN_IF_ERROR(ReduceInRankOrder(operation));
        return GatherChunks(operation);
      }
      return Accept(operation, ncclAllReduce(operation.send, operation.receive, operation.count,
                                             type, op, comm_, options_.stream));
    case OperationKind::kReduceScatter:
      if (in_rank_order) return ReduceInRankOrder(operation);
      return Accept(operation, ncclReduceScatter(operation.send, operation.receive, operation.count,
                                                 type, op, comm_, options_.stream));
    case OperationKind::kAllGather:
      return Accept(operation, ncclAllGather(operation.send, operation.receive, operation.count,
                                             type, comm_, options_.stream));
  }
  return absl::OkStatus();
}

absl::Status NcclCommunicator::ReduceInRankOrder(const Operation& operation) {
  const int64_t element = static_cast<int64_t>(SizeOf(operation.dtype));
  const int64_t slice =
      static_cast<int64_t>(options_.scratch.bytes()) / (element * std::max(size() - 1, 1));
  HALFSTEP_CHECK_GT(slice, 0);
  const int64_t longest = LongestChunk(TotalElements(operation, size()), size());
  for (int64_t begin = 0; begin < longest; begin += slice) {
    if (size() > 1) HALFSTEP_RETURN_IF_ERROR(ExchangeSlice(operation, begin, slice));
    HALFSTEP_RETURN_IF_ERROR(ReduceSlice(operation, begin, slice));
  }
  return absl::OkStatus();
}

absl::Status NcclCommunicator::ExchangeSlice(const Operation& operation, int64_t begin,
                                             int64_t slice) {
  const int64_t total = TotalElements(operation, size());
  const ncclDataType_t type = NcclType(operation.dtype);
  const Chunk here = SliceOf(ChunkOf(total, size(), rank()), begin, slice);
  // Its results are its calls': what one of them refused, the end of the group reports.
  ncclGroupStart();
  int64_t next = 0;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    const Chunk there = SliceOf(ChunkOf(total, size(), peer), begin, slice);
    if (there.count() > 0) {
      ncclSend(At(operation.send, there.begin, operation.dtype), there.count(), type, peer, comm_,
               options_.stream);
    }
    if (here.count() > 0) {
      ncclRecv(At(options_.scratch.data(), next, operation.dtype), here.count(), type, peer, comm_,
               options_.stream);
      next += here.count();
    }
  }
  return Accept(operation, ncclGroupEnd());
}

absl::Status NcclCommunicator::ReduceSlice(const Operation& operation, int64_t begin,
                                           int64_t slice) {
  const Chunk mine = ChunkOf(TotalElements(operation, size()), size(), rank());
  const Chunk here = SliceOf(mine, begin, slice);
  if (here.count() == 0) return absl::OkStatus();
  std::vector<const void*> shards;
  int64_t next = 0;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) {
      shards.push_back(At(operation.send, here.begin, operation.dtype));
    } else {
      shards.push_back(At(options_.scratch.data(), next, operation.dtype));
      next += here.count();
    }
  }
  const int64_t to = operation.kind == OperationKind::kAllReduce ? here.begin : begin;
  const absl::Status status =
      options_.reducer({shards, here.count(), operation.dtype},
                       At(operation.receive, to, operation.dtype), options_.stream);
  return status.ok() ? status : CollectiveError(operation, membership(), status, {});
}

absl::Status NcclCommunicator::GatherChunks(const Operation& operation) {
  if (size() == 1 || operation.count == 0) return absl::OkStatus();
  const ncclDataType_t type = NcclType(operation.dtype);
  const Chunk mine = ChunkOf(operation.count, size(), rank());
  ncclGroupStart();
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    const Chunk theirs = ChunkOf(operation.count, size(), peer);
    if (mine.count() > 0) {
      ncclSend(At(operation.receive, mine.begin, operation.dtype), mine.count(), type, peer, comm_,
               options_.stream);
    }
    if (theirs.count() > 0) {
      ncclRecv(At(operation.receive, theirs.begin, operation.dtype), theirs.count(), type, peer,
               comm_, options_.stream);
    }
  }
  return Accept(operation, ncclGroupEnd());
}

absl::Status NcclCommunicator::Accept(const Operation& operation, ncclResult_t result) {
  if (result == ncclSuccess) return absl::OkStatus();
  if (result != ncclInProgress) return NcclError(operation, result);
  // Nothing may be enqueued behind a call before NCCL has enqueued it.
  return Poll(operation, [&] { return Idle(operation); });
}

absl::Status NcclCommunicator::Poll(const Operation& operation,
                                    const std::function<absl::StatusOr<bool>()>& done) {
  absl::Duration nap = absl::Microseconds(5);
  for (int polls = 0;; ++polls) {
    HALFSTEP_ASSIGN_OR_RETURN(const bool is_done, done());
    if (is_done) return absl::OkStatus();
    HALFSTEP_RETURN_IF_ERROR(Idle(operation).status());
    if (aborted()) return AbortedError(operation);
    if (absl::Now() >= operation.call->deadline) {
      return CollectiveError(operation, membership(), TimeoutOf({}), {});
    }
    if (polls < kSpins) continue;
    absl::SleepFor(nap);
    nap = std::min(nap * 2, kLongestNap);
  }
}

absl::StatusOr<bool> NcclCommunicator::Idle(const Operation& operation) {
  ncclResult_t state = ncclSuccess;
  const ncclResult_t result = ncclCommGetAsyncError(comm_, &state);
  if (result != ncclSuccess) return NcclError(operation, result);
  if (state == ncclInProgress) return false;
  if (state != ncclSuccess) return NcclError(operation, state);
  return true;
}

absl::Status NcclCommunicator::NcclError(const Operation& operation, ncclResult_t result) const {
  const char* const last = comm_ == nullptr ? nullptr : ncclGetLastError(comm_);
  const std::string detail = absl::StrCat(
      "NCCL: ", ncclGetErrorString(result), last == nullptr || *last == 0 ? "" : ": ",
      last == nullptr ? "" : last, ": form a new communicator; NCCL_DEBUG=INFO makes it say more");
  absl::Status what;
  if (result == ncclRemoteError) {
    what = Error(absl::StatusCode::kUnavailable, "PEER_LOST", detail);
  } else if (result == ncclInvalidUsage || result == ncclInvalidArgument) {
    what = Error(absl::StatusCode::kFailedPrecondition, "COLLECTIVE_MISMATCH", detail);
  } else {
    what = Error(absl::StatusCode::kInternal, "COLLECTIVE_TRANSPORT", detail);
  }
  return CollectiveError(operation, membership(), what, {});
}

absl::Status NcclCommunicator::Check(const Operation& operation, cudaError_t result) const {
  if (result == cudaSuccess) return absl::OkStatus();
  return CollectiveError(operation, membership(),
                         Error(absl::StatusCode::kInternal, "COLLECTIVE_TRANSPORT",
                               absl::StrCat("CUDA: ", cudaGetErrorString(result))),
                         {});
}

}  // namespace halfstep
