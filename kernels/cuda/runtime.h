// SPDX-License-Identifier: Apache-2.0
// Memory, streams and errors of CUDA devices, behind plain pointers so that neither the rest of the
// kernels library nor the emulator needs CUDA's headers. Defined by the CUDA backend (runtime.cu)
// or by the emulator (emulator/runtime.cc); a build with neither has no definition.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device_error.h"

// A function that a build may lack: its address is then null, which kernels/dispatch.h looks at.
#define HALFSTEP_MAY_BE_ABSENT __attribute__((weak))

namespace halfstep::cuda {

// What Launch starts. Blocks are numbered by x (fastest) and y; y stays below 65536.
struct LaunchShape {
  const char* kernel = "";  // for errors and traces
  int64_t grid_x = 1;
  int64_t grid_y = 1;
  int threads = 32;
  size_t shared_bytes = 0;
};

// Zero-filled device memory, aligned to 256 bytes; never null. With HALFSTEP_CUDA_MANAGED in the
// environment the host may read and write it too, and every call of the backend waits for its work:
// for tests and debugging. Throws std::bad_alloc when the
// device has not enough, DeviceError when there is no such device.
HALFSTEP_MAY_BE_ABSENT void* AllocateMemory(int device, size_t bytes);
HALFSTEP_MAY_BE_ABSENT void FreeMemory(int device, void* data, size_t bytes);

// Streams of one device, without order against the default stream. A stream is used by one thread
// at a time.
HALFSTEP_MAY_BE_ABSENT void* CreateStream(int device);
HALFSTEP_MAY_BE_ABSENT void DestroyStream(int device, void* stream);
// Waits for all that was put on the stream; throws DeviceError when any of it failed.
HALFSTEP_MAY_BE_ABSENT void SynchronizeStream(void* stream);
// The same for all streams of the device.
HALFSTEP_MAY_BE_ABSENT void SynchronizeDevice(int device);

// Between any two places that the device can reach: device memory, page-locked and (then
// synchronously) pageable host memory.
HALFSTEP_MAY_BE_ABSENT void CopyBytes(void* stream, void* to, const void* from, size_t bytes);
HALFSTEP_MAY_BE_ABSENT void ZeroBytes(void* stream, void* data, size_t bytes);

#if defined(__CUDACC__)
// Makes the device the calling thread's, and asks for shared memory beyond 48 KiB where a kernel
// needs it.
void PrepareLaunch(int device, const LaunchShape& shape, const void* kernel);
// Throws DeviceError when the launch just before, on `stream`, was refused.
void CheckLaunched(const LaunchShape& shape, void* stream);
#endif

}  // namespace halfstep::cuda
