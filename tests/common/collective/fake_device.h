// SPDX-License-Identifier: Apache-2.0
// The GPUs below fake_nccl.h: streams of work, and what the ranks' collectives do when all of them
// have one at the heads of their streams. The symbols of the CUDA runtime are in the .cc.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace halfstep::fake_nccl {

// The ranks of one unique id.
struct Clique {
  std::vector<ncclComm*> members;  // by rank; null until it has come
};

}  // namespace halfstep::fake_nccl

// What the handles of the API point to.
struct ncclComm {
  std::shared_ptr<halfstep::fake_nccl::Clique> clique;
  int rank = 0;
  std::thread::id owner;
  ncclResult_t state = ncclInProgress;
  int busy_polls = 0;  // until a call that was taken leaves ncclInProgress
  CUstream_st* busy_stream = nullptr;
  int calls = 0;
  bool finalized = false;
  bool gone = false;
  std::string error;
};
struct CUevent_st {
  bool pending = false;
};

namespace halfstep::fake_nccl {

enum class Kind { kBroadcast, kAllReduce, kReduceScatter, kAllGather, kExchange, kEvent, kHost };

struct Part {  // one send or receive of an exchange
  bool sends = false;
  int peer = 0;
  char* data = nullptr;
  size_t count = 0;
  ncclDataType_t type = ncclUint8;
};
struct Work {
  Kind kind = Kind::kHost;
  ncclComm* comm = nullptr;
  const char* send = nullptr;
  char* receive = nullptr;
  size_t count = 0;
  ncclDataType_t type = ncclUint8;
  ncclRedOp_t op = ncclSum;
  int root = 0;
  std::vector<Part> parts = {};
  CUevent_st* event = nullptr;
  std::function<void()> host = {};
  int polls = 0;  // before the device reaches it
};

}  // namespace halfstep::fake_nccl

struct CUstream_st {
  std::deque<halfstep::fake_nccl::Work> queue;
};

namespace halfstep::fake_nccl {

struct Fault {
  int call = 0;
  ncclResult_t error = ncclSuccess;
};
struct State {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<Clique>> cliques;
  std::vector<std::unique_ptr<ncclComm>> comms;  // kept for good: use after abort is seen
  std::vector<std::unique_ptr<CUstream_st>> streams;
  std::set<CUevent_st*> events;
  std::vector<std::string> violations, names;
  std::map<int, Fault> faults;
  std::map<int, int> slowness;
};
// Everything there is. Its mutex is held by whoever touches it.
State& state();

// Remembers it. Returns what NCCL returns for misuse.
ncclResult_t Violation(const std::string& what);

// The devices do all they can.
void Advance();

}  // namespace halfstep::fake_nccl
