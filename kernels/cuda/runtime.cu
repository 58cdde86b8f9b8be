// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/runtime.h"

#include <cuda_runtime.h>

#include <cstdlib>
#include <new>
#include <string>

namespace halfstep::cuda {
namespace {

constexpr size_t kDefaultSharedBytes = 48 << 10;

std::string Words(cudaError_t error) {
  return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

void Require(cudaError_t error, const std::string& what) {
  if (error != cudaSuccess) throw DeviceError("CUDA: " + what + ": " + Words(error));
}

std::string Describe(const LaunchShape& shape) {
  return std::string("kernel ") + shape.kernel + " with " + std::to_string(shape.grid_x) + " x " +
         std::to_string(shape.grid_y) + " blocks of " + std::to_string(shape.threads) +
         " threads and " + std::to_string(shape.shared_bytes) + " bytes of shared memory";
}

// For tests and debugging: memory that host and device share, and no call returns before its work
// is done, so that the host may read every tensor at any time.
bool Managed() {
  static const bool managed = std::getenv("HALFSTEP_CUDA_MANAGED") != nullptr;
  return managed;
}

void WaitIfManaged(cudaStream_t stream, const std::string& what) {
  if (Managed()) Require(cudaStreamSynchronize(stream), what);
}

void Select(int device) {
  Require(cudaSetDevice(device), "device " + std::to_string(device) + " cannot be used");
}

}  // namespace

void* AllocateMemory(int device, size_t bytes) {
  Select(device);
  void* data = nullptr;
  const size_t wanted = bytes == 0 ? 1 : bytes;
  const cudaError_t error =
      Managed() ? cudaMallocManaged(&data, wanted) : cudaMalloc(&data, wanted);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // Not sticky, but returned once more by the next launch.
    throw std::bad_alloc();
  }
  Require(error,
          "allocating " + std::to_string(bytes) + " bytes on device " + std::to_string(device));
  Require(cudaMemset(data, 0, bytes), "clearing memory");
  Require(cudaDeviceSynchronize(), "clearing memory");
  return data;
}

void FreeMemory(int device, void* data, size_t /*bytes*/) {
  // Errors here are those of earlier work, which has been reported; memory goes with the process.
  if (cudaSetDevice(device) == cudaSuccess) cudaFree(data);
}

void* CreateStream(int device) {
  Select(device);
  cudaStream_t stream = nullptr;
  Require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
  return stream;
}

void DestroyStream(int device, void* stream) {
  if (cudaSetDevice(device) == cudaSuccess) cudaStreamDestroy(static_cast<cudaStream_t>(stream));
}

void SynchronizeStream(void* stream) {
  Require(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "work on a stream failed");
}

void SynchronizeDevice(int device) {
  Select(device);
  Require(cudaDeviceSynchronize(), "work on device " + std::to_string(device) + " failed");
}

void CopyBytes(void* stream, void* to, const void* from, size_t bytes) {
  Require(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(stream)),
          "copying " + std::to_string(bytes) + " bytes");
  WaitIfManaged(static_cast<cudaStream_t>(stream), "copying " + std::to_string(bytes) + " bytes");
}

void ZeroBytes(void* stream, void* data, size_t bytes) {
  Require(cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(stream)),
          "clearing " + std::to_string(bytes) + " bytes");
  WaitIfManaged(static_cast<cudaStream_t>(stream), "clearing " + std::to_string(bytes) + " bytes");
}

void PrepareLaunch(int device, const LaunchShape& shape, const void* kernel) {
  Select(device);
  if (shape.shared_bytes <= kDefaultSharedBytes) return;
  Require(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)),
          Describe(shape));
}

void CheckLaunched(const LaunchShape& shape, void* stream) {
  Require(cudaGetLastError(), Describe(shape));
  WaitIfManaged(static_cast<cudaStream_t>(stream), Describe(shape));
}

}  // namespace halfstep::cuda
