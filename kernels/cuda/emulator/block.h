// SPDX-License-Identifier: Apache-2.0
// The block that the emulator runs at the moment, for the wrappers of primitives.h. Every function
// is called by a fiber within Run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace halfstep::cuda::emulator {

struct ThreadPlace {
  int thread = 0;
  int block_threads = 0;
  int64_t block_x = 0;
  int64_t block_y = 0;
  int64_t grid_x = 0;
  int64_t grid_y = 0;
};
const ThreadPlace& Place();

// Throws EmulationError with the place of the calling thread.
[[noreturn]] void Fail(const std::string& what);

// What the lanes of a warp brought to a collective: input[l] and output[l] are of lane l.
struct WarpExchange {
  const void* input[32];
  void* output[32];
};
// Returns when all 32 lanes of the warp have come to the collective of this name and the last of
// them has called `exchange`.
void Collective(const char* name, const void* input, void* output,
                void (*exchange)(const WarpExchange&));

// Returns when all threads of the block have come.
void Barrier();

unsigned char* SharedMemoryBytes(size_t byte_offset, size_t bytes);

// Asynchronous copies of the calling thread; `from` null fills with zeros.
void BeginCopy16(void* to, const void* from);
void EndCopyGroup();
void WaitCopyGroups(size_t pending);

void CountMatrixInstruction();

}  // namespace halfstep::cuda::emulator
