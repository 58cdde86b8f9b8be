// SPDX-License-Identifier: Apache-2.0
// The emulator's device: host memory, and streams that have done everything when a call returns.
#include "kernels/cuda/runtime.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

namespace halfstep::cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr int kDevices = 4;

}  // namespace

void* AllocateMemory(int device, size_t bytes) {
  if (device < 0 || device >= kDevices) {
    throw DeviceError("there is no emulated device " + std::to_string(device));
  }
  const size_t rounded = (bytes + kAlignment) / kAlignment * kAlignment;  // at least one byte
  void* const data = std::aligned_alloc(kAlignment, rounded);
  if (data == nullptr) throw std::bad_alloc();
  std::memset(data, 0, rounded);
  return data;
}

void FreeMemory(int /*device*/, void* data, size_t /*bytes*/) { std::free(data); }

// A stream needs an address of its own and nothing else.
void* CreateStream(int device) { return AllocateMemory(device, 1); }
void DestroyStream(int device, void* stream) { FreeMemory(device, stream, 1); }
void SynchronizeStream(void* /*stream*/) {}
void SynchronizeDevice(int /*device*/) {}

void CopyBytes(void* /*stream*/, void* to, const void* from, size_t bytes) {
  std::memmove(to, from, bytes);
}
void ZeroBytes(void* /*stream*/, void* data, size_t bytes) { std::memset(data, 0, bytes); }

}  // namespace halfstep::cuda
