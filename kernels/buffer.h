// SPDX-License-Identifier: Apache-2.0
// Buffer owns device memory under a name, so that memory can be reported.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "kernels/tensor.h"

namespace halfstep {

// Zero-filled, aligned to 64 bytes, on the host of huge pages where there are any. Movable, not
// copyable. Construction throws std::bad_alloc when the system refuses the memory, which callers
// turn into RESOURCE_EXHAUSTED at start-up (by its defaults it refuses only what it could never
// have, so they look at what is free first), and DeviceError (device_error.h) without the device.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::string name, size_t bytes, Device device = kCpuDevice);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  const std::string& name() const { return name_; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  void* data() { return data_; }
  const void* data() const { return data_; }

  // A view of `shape` elements from `byte_offset` on; CHECKs that it fits.
  Tensor View(DType dtype, Shape shape, size_t byte_offset = 0);
  ConstTensor View(DType dtype, Shape shape, size_t byte_offset = 0) const;

 private:
  std::string name_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Device device_;
};

// One tensor that owns its memory.
class OwnedTensor {
 public:
  OwnedTensor() = default;
  OwnedTensor(std::string name, DType dtype, Shape shape, Device device = kCpuDevice);

  Tensor view() { return view_; }
  ConstTensor view() const { return view_; }
  operator Tensor() { return view_; }             // NOLINT(google-explicit-constructor)
  operator ConstTensor() const { return view_; }  // NOLINT(google-explicit-constructor)

 private:
  Buffer buffer_;
  Tensor view_;
};

// Bytes held by every live Buffer of the process, by name, largest first.
struct MemoryUse {
  std::string name;
  size_t bytes;
};
std::vector<MemoryUse> MemoryReport();

}  // namespace halfstep
