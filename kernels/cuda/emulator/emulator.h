// SPDX-License-Identifier: Apache-2.0
// Runs device code on the CPU, for tests: each thread of a block is a fiber. Made to find the bugs
// that a GPU would hide or show only now and then:
// * threads run in a random order, and change at every collective and barrier;
// * an asynchronous copy lands as late as the program allows, at the wait that covers it;
// * shared memory holds NaN until it is written;
// * addresses of Pointer are checked against the tensor or the shared memory that they come from,
//   wide accesses against their alignment;
// * a warp whose lanes call different collectives, a barrier that not all threads of a block reach,
//   and a deadlock are errors;
// * the matrix instruction follows the published model of Hopper's tensor cores to the bit
//   (tensor_core.h).
// It does not see timing, not a missing SyncWarp where lanes exchange data through memory, no races
// between blocks, which run one after the other, and nothing that comes of calls returning before
// their work is done.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>

#include "kernels/cuda/runtime.h"

namespace halfstep::cuda::emulator {

// What device code did wrong; the message names the kernel, the block, the thread and the seed of
// the schedule.
class EmulationError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Runs `body` once for every thread of every block, one block after the other, on the calling
// thread. Throws EmulationError. Thread-safe: each calling thread has an emulator of its own.
void Run(const LaunchShape& shape, const std::function<void()>& body);

// The seed of the random order of threads: that of the environment variable
// HALFSTEP_EMULATOR_SEED, or a fixed one; each Run of a thread derives its own from it.
void SetSeed(uint64_t seed);

// Matrix instructions (of a whole warp) since the thread began, for tests of what ran.
int64_t MatrixInstructions();

}  // namespace halfstep::cuda::emulator
