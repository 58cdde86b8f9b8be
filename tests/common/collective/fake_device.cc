// SPDX-License-Identifier: Apache-2.0
#include "tests/common/collective/fake_device.h"

#include <cstring>
#include <sstream>

#include "kernels/dtype.h"

namespace halfstep::fake_nccl {
namespace {

size_t SizeOf(ncclDataType_t type) {
  switch (type) {
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclFloat64:
    case ncclInt64:
      return 8;
    case ncclUint8:
      return 1;
    default:
      return 4;
  }
}

template <class T>
double Widen(T value) {
  if constexpr (requires { value.bits; }) {
    return ToFloat(value);
  } else {
    return value;
  }
}
template <class T>
T Narrow(double value) {
  if constexpr (requires(T t) { t.bits; }) {
    return FromFloat<T>(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

// Element by element over the ranks' inputs, rounding to T after each, from the last rank on.
template <class T>
std::vector<char> Reduce(const std::vector<const char*>& inputs, size_t count, ncclRedOp_t op) {
  std::vector<char> out(count * sizeof(T));
  for (size_t i = 0; i < count; ++i) {
    T sum = reinterpret_cast<const T*>(inputs.back())[i];
    for (size_t rank = inputs.size() - 1; rank-- > 0;) {
      const T value = reinterpret_cast<const T*>(inputs[rank])[i];
      if (op == ncclSum) {
        sum = Narrow<T>(Widen(sum) + Widen(value));
      } else if (Widen(value) > Widen(sum)) {
        sum = value;
      }
    }
    std::memcpy(&out[i * sizeof(T)], &sum, sizeof(T));
  }
  return out;
}

std::vector<char> ReduceAs(ncclDataType_t type, const std::vector<const char*>& inputs,
                           size_t count, ncclRedOp_t op) {
  switch (type) {
    case ncclFloat16:
      return Reduce<Float16>(inputs, count, op);
    case ncclBfloat16:
      return Reduce<BFloat16>(inputs, count, op);
    case ncclFloat32:
      return Reduce<float>(inputs, count, op);
    case ncclFloat64:
      return Reduce<double>(inputs, count, op);
    case ncclInt32:
      return Reduce<int32_t>(inputs, count, op);
    case ncclInt64:
      return Reduce<int64_t>(inputs, count, op);
    default:
      return Reduce<uint8_t>(inputs, count, op);
  }
}

std::string Show(const Work& work) {
  std::ostringstream out;
  out << "kind " << static_cast<int>(work.kind) << " count " << work.count << " type " << work.type
      << " op " << work.op << " root " << work.root;
  return out.str();
}

// Why the ranks' work at the heads of their streams does not fit; empty when it does.
std::string Misfit(const std::vector<Work*>& work) {
  for (const Work* one : work) {
    if (Show(*one) != Show(*work[0])) return Show(*work[0]) + " against " + Show(*one);
  }
  for (size_t rank = 0; rank < work.size(); ++rank) {
    for (const Part& part : work[rank]->parts) {
      const Part* other = nullptr;
      for (const Part& candidate : work[part.peer]->parts) {
        if (candidate.peer == static_cast<int>(rank) && candidate.sends != part.sends) {
          other = &candidate;
        }
      }
      if (other == nullptr || other->count != part.count || other->type != part.type) {
        return "a send without its receive between ranks " + std::to_string(rank) + " and " +
               std::to_string(part.peer);
      }
    }
  }
  return "";
}

void Do(const std::vector<Work*>& work) {
  const size_t size = work.size();
  const Work& first = *work[0];
  const size_t bytes = first.count * SizeOf(first.type);
  std::vector<const char*> inputs;
  for (size_t rank = 0; rank < size; ++rank) inputs.push_back(work[rank]->send);
  switch (first.kind) {
    case Kind::kBroadcast:
      for (Work* one : work) std::memmove(one->receive, inputs[first.root], bytes);
      break;
    case Kind::kAllReduce: {
      const std::vector<char> sum = ReduceAs(first.type, inputs, first.count, first.op);
      for (Work* one : work) std::memcpy(one->receive, sum.data(), bytes);
      break;
    }
    case Kind::kReduceScatter: {
      const std::vector<char> sum = ReduceAs(first.type, inputs, first.count * size, first.op);
      for (size_t r = 0; r < size; ++r) std::memcpy(work[r]->receive, &sum[r * bytes], bytes);
      break;
    }
    case Kind::kAllGather:
      for (Work* one : work) {
        for (size_t r = 0; r < size; ++r) std::memmove(one->receive + r * bytes, inputs[r], bytes);
      }
      break;
    default:  // an exchange
      for (size_t rank = 0; rank < size; ++rank) {
        for (const Part& to : work[rank]->parts) {
          for (const Part& from : work[to.peer]->parts) {
            if (to.sends || !from.sends || from.peer != static_cast<int>(rank)) continue;
            std::memcpy(to.data, from.data, to.count * SizeOf(to.type));
          }
        }
      }
  }
}

// The device does what it can of `clique`. Returns whether that was anything.
bool AdvanceClique(const Clique& clique) {
  std::vector<Work*> work;
  std::vector<CUstream_st*> streams;
  bool all_there = true;
  for (ncclComm* member : clique.members) {
    if (member == nullptr || member->gone) return false;
    CUstream_st* found = nullptr;
    for (const auto& stream : state().streams) {
      if (!stream->queue.empty() && stream->queue.front().comm == member) found = stream.get();
    }
    if (found == nullptr) return false;
    Work& head = found->queue.front();
    if (member->state != ncclSuccess && member->state != ncclInProgress) return false;
    if (head.polls > 0) {
      --head.polls;
      all_there = false;
    }
    work.push_back(&head);
    streams.push_back(found);
  }
  if (!all_there) return false;
  if (const std::string misfit = Misfit(work); !misfit.empty()) {
    for (ncclComm* member : clique.members) {
      member->state = ncclInvalidUsage;
      member->error = misfit;
    }
    return false;
  }
  Do(work);
  for (CUstream_st* stream : streams) stream->queue.pop_front();
  return true;
}

// What is enqueued on `stream` would overtake a call that NCCL has yet to enqueue there.
void CheckNothingIsTaken(cudaStream_t stream, const char* what) {
  for (const auto& comm : state().comms) {
    if (!comm->gone && comm->busy_stream == stream) {
      Violation(std::string(what) + " behind a call that NCCL has not taken yet");
    }
  }
}

}  // namespace

State& state() {
  static State* const instance = new State;
  return *instance;
}

ncclResult_t Violation(const std::string& what) {
  state().violations.push_back(what);
  return ncclInvalidUsage;
}

void Advance() {
  bool moved = true;
  while (moved) {
    moved = false;
    for (const auto& stream : state().streams) {
      while (!stream->queue.empty() && stream->queue.front().comm == nullptr) {
        Work& head = stream->queue.front();
        if (head.kind == Kind::kHost) head.host();
        if (head.kind == Kind::kEvent) head.event->pending = false;
        stream->queue.pop_front();
        moved = true;
      }
    }
    for (const auto& [id, clique] : state().cliques) moved = AdvanceClique(*clique) || moved;
  }
}

}  // namespace halfstep::fake_nccl

using halfstep::fake_nccl::Advance;
using halfstep::fake_nccl::CheckNothingIsTaken;
using halfstep::fake_nccl::Kind;
using halfstep::fake_nccl::state;
using halfstep::fake_nccl::Work;

extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  const std::lock_guard lock(state().mutex);
  state().streams.push_back(std::make_unique<CUstream_st>());
  *stream = state().streams.back().get();
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int) {
  const std::lock_guard lock(state().mutex);
  *event = new CUevent_st;
  state().events.insert(*event);
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::lock_guard lock(state().mutex);
  for (const auto& stream : state().streams) {
    std::erase_if(stream->queue, [event](const Work& work) { return work.event == event; });
  }
  state().events.erase(event);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard lock(state().mutex);
  CheckNothingIsTaken(stream, "an event");
  event->pending = true;
  stream->queue.push_back({.kind = Kind::kEvent, .event = event});
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const std::lock_guard lock(state().mutex);
  Advance();
  return event->pending ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  const std::lock_guard lock(state().mutex);
  CheckNothingIsTaken(stream, "work");
  stream->queue.push_back({.kind = Kind::kHost, .host = [function, data] { function(data); }});
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t) { return "an error of the fake"; }

}  // extern "C"
