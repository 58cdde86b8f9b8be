// SPDX-License-Identifier: Apache-2.0
// ExecContext: everything an operation may use, passed explicitly. One per engine thread and one
// per trainer thread.
#pragma once

#include <atomic>
#include <cstdint>

#include "kernels/device.h"

namespace halfstep {

class Stream;
class ThreadPool;
class Workspace;

// `kFast` lets a backend pick its fastest kernel, which may split a sum or leave out a rounding;
// `kBitwise` promises that a row's result is a function of that row and the weights only
// (docs/numerics.md).
enum class Profile : uint8_t { kFast, kBitwise };

// Does not own what it points to; all must outlive every call that takes the context.
struct ExecContext {
  Device device;
  Stream* stream = nullptr;  // CUDA only
  Workspace* workspace = nullptr;
  ThreadPool* threads = nullptr;  // CPU only; null runs on the calling thread
  Profile profile = Profile::kBitwise;
  // FP16 forward stores beyond 65 504 saturate and are added here; null does not count them.
  std::atomic<int64_t>* saturated_stores = nullptr;
};

}  // namespace halfstep
