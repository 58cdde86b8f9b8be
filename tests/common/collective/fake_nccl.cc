// SPDX-License-Identifier: Apache-2.0
#include "tests/common/collective/fake_nccl.h"

#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "tests/common/collective/fake_device.h"

using halfstep::fake_nccl::Advance;
using halfstep::fake_nccl::Clique;
using halfstep::fake_nccl::Kind;
using halfstep::fake_nccl::Part;
using halfstep::fake_nccl::state;
using halfstep::fake_nccl::Violation;
using halfstep::fake_nccl::Work;

namespace {

// Of the thread's open group; null without one.
thread_local std::unique_ptr<Work> group;
thread_local CUstream_st* group_stream = nullptr;
thread_local ncclResult_t group_result = ncclSuccess;

ncclResult_t CheckUse(ncclComm* comm, const char* call) {
  if (comm == nullptr) return Violation(std::string(call) + " without a communicator");
  if (comm->gone) return Violation(std::string(call) + " after abort or destroy");
  if (comm->owner != std::this_thread::get_id()) {
    return Violation(std::string(call) + " from a foreign thread");
  }
  return ncclSuccess;
}

ncclResult_t Enqueue(Work work, cudaStream_t stream) {
  ncclComm* const comm = work.comm;
  if (comm->state == ncclInProgress) return Violation("a call on a busy communicator");
  if (comm->state != ncclSuccess) return comm->state;
  const auto slow = state().slowness.find(comm->rank);
  work.polls = slow == state().slowness.end() ? 0 : slow->second;
  stream->queue.push_back(std::move(work));
  comm->state = ncclInProgress;
  comm->busy_polls = 1;
  comm->busy_stream = stream;
  const auto fault = state().faults.find(comm->rank);
  if (fault != state().faults.end() && fault->second.call == ++comm->calls) {
    comm->state = fault->second.error;
    comm->error = "injected";
  }
  return ncclInProgress;
}

ncclResult_t Collective(Work work, const char* call, cudaStream_t stream) {
  const std::lock_guard lock(state().mutex);
  const ncclResult_t use = CheckUse(work.comm, call);
  if (use != ncclSuccess) return use;
  if (work.count == 0) return ncclSuccess;
  return Enqueue(std::move(work), stream);
}

ncclResult_t AddPart(const Part& part, ncclComm* comm, cudaStream_t stream) {
  const std::lock_guard lock(state().mutex);
  ncclResult_t use = CheckUse(comm, part.sends ? "ncclSend" : "ncclRecv");
  if (use == ncclSuccess && group == nullptr) use = Violation("a send or receive without a group");
  if (use != ncclSuccess) return group_result = use;
  group->comm = comm;
  group->parts.push_back(part);
  group_stream = stream;
  return ncclSuccess;
}

}  // namespace

extern "C" {

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::random_device random;
  for (char& byte : id->internal) byte = static_cast<char>(random());
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int nranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  const std::lock_guard lock(state().mutex);
  const ncclConfig_t expected = NCCL_CONFIG_INITIALIZER;
  if (config->size != expected.size || config->magic != expected.magic || config->blocking != 0) {
    return Violation("a configuration that blocks, or is not initialised");
  }
  auto& clique = state().cliques[std::string(id.internal, sizeof(id.internal))];
  if (clique == nullptr) {
    clique = std::make_shared<Clique>();
    clique->members.resize(nranks);
  }
  if (clique->members.size() != static_cast<size_t>(nranks) || rank >= nranks ||
      clique->members[rank] != nullptr) {
    return Violation("the ranks of one id are numbered in two ways");
  }
  state().names.emplace_back(config->commName);
  auto made = std::make_unique<ncclComm>();
  made->clique = clique;
  made->rank = rank;
  made->owner = std::this_thread::get_id();
  *comm = clique->members[rank] = made.get();
  state().comms.push_back(std::move(made));
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* result) {
  const std::lock_guard lock(state().mutex);
  const ncclResult_t use = CheckUse(comm, "ncclCommGetAsyncError");
  if (use != ncclSuccess) return use;
  Advance();
  *result = comm->state;
  if (comm->state != ncclInProgress) return ncclSuccess;
  bool complete = true;
  for (const ncclComm* member : comm->clique->members) complete = complete && member != nullptr;
  if (complete && comm->busy_polls-- <= 0) {
    comm->state = ncclSuccess;
    comm->busy_stream = nullptr;
  }
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  const std::lock_guard lock(state().mutex);
  const ncclResult_t use = CheckUse(comm, "ncclCommFinalize");
  if (use != ncclSuccess) return use;
  if (comm->state != ncclSuccess) return Violation("finalize of a busy communicator");
  comm->finalized = true;
  comm->state = ncclInProgress;
  comm->busy_polls = 1;
  return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  const std::lock_guard lock(state().mutex);
  const ncclResult_t use = CheckUse(comm, "ncclCommDestroy");
  if (use != ncclSuccess) return use;
  if (!comm->finalized) return Violation("destroy without finalize");
  comm->gone = true;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  const std::lock_guard lock(state().mutex);
  const ncclResult_t use = CheckUse(comm, "ncclCommAbort");
  if (use != ncclSuccess) return use;
  for (const auto& stream : state().streams) {
    std::erase_if(stream->queue, [comm](const Work& work) { return work.comm == comm; });
  }
  comm->gone = true;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclRemoteError ? "remote process exited or there was a network error"
                                   : "an error of the fake";
}

const char* ncclGetLastError(ncclComm_t comm) {
  const std::lock_guard lock(state().mutex);
  return comm->error.c_str();
}

ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream) {
  return Collective({.kind = Kind::kBroadcast,
                     .comm = comm,
                     .send = static_cast<const char*>(send),
                     .receive = static_cast<char*>(receive),
                     .count = count,
                     .type = type,
                     .root = root},
                    "ncclBroadcast", stream);
}

ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return Collective({.kind = Kind::kAllReduce,
                     .comm = comm,
                     .send = static_cast<const char*>(send),
                     .receive = static_cast<char*>(receive),
                     .count = count,
                     .type = type,
                     .op = op},
                    "ncclAllReduce", stream);
}

ncclResult_t ncclReduceScatter(const void* send, void* receive, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return Collective({.kind = Kind::kReduceScatter,
                     .comm = comm,
                     .send = static_cast<const char*>(send),
                     .receive = static_cast<char*>(receive),
                     .count = count,
                     .type = type,
                     .op = op},
                    "ncclReduceScatter", stream);
}

ncclResult_t ncclAllGather(const void* send, void* receive, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  return Collective({.kind = Kind::kAllGather,
                     .comm = comm,
                     .send = static_cast<const char*>(send),
                     .receive = static_cast<char*>(receive),
                     .count = count,
                     .type = type},
                    "ncclAllGather", stream);
}

ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return AddPart({true, peer, static_cast<char*>(const_cast<void*>(data)), count, type}, comm,
                 stream);
}

ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return AddPart({false, peer, static_cast<char*>(data), count, type}, comm, stream);
}

ncclResult_t ncclGroupStart() {
  group = std::make_unique<Work>();
  group->kind = Kind::kExchange;
  group_result = ncclSuccess;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  const std::lock_guard lock(state().mutex);
  const std::unique_ptr<Work> work = std::move(group);
  if (work == nullptr) return Violation("the end of a group that was not started");
  if (group_result != ncclSuccess) return group_result;
  if (work->parts.empty()) return ncclSuccess;
  return Enqueue(std::move(*work), group_stream);
}

}  // extern "C"

namespace halfstep::fake_nccl {

void Reset() {
  const std::lock_guard lock(state().mutex);
  state().cliques.clear();
  state().comms.clear();
  state().streams.clear();
  state().violations.clear();
  state().names.clear();
  state().faults.clear();
  state().slowness.clear();
}

std::vector<std::string> Violations() {
  const std::lock_guard lock(state().mutex);
  return state().violations;
}

void FailCall(int rank, int call, ncclResult_t error) {
  const std::lock_guard lock(state().mutex);
  state().faults[rank] = {call, error};
}

void SlowDown(int rank, int polls) {
  const std::lock_guard lock(state().mutex);
  state().slowness[rank] = polls;
}

int Alive() {
  const std::lock_guard lock(state().mutex);
  int alive = static_cast<int>(state().events.size());
  for (const auto& comm : state().comms) alive += comm->gone ? 0 : 1;
  return alive;
}

std::vector<std::string> Names() {
  const std::lock_guard lock(state().mutex);
  return state().names;
}

}  // namespace halfstep::fake_nccl
