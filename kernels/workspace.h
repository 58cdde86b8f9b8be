// SPDX-License-Identifier: Apache-2.0
// Scratch memory with stack discipline: an operation opens a Scope, takes what it needs, and gives
// it all back when the scope ends.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "kernels/device.h"
#include "kernels/tensor.h"

namespace halfstep {

// Grows by whole chunks on first use and keeps them, so that a steady state allocates nothing.
// Not thread-safe: one per ExecContext, used by the thread that calls operations.
class Workspace {
 public:
  explicit Workspace(Device device = kCpuDevice, size_t chunk_bytes = size_t{4} << 20);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  Device device() const { return device_; }
  // The most that was ever taken at once, with the unused ends of chunks.
  size_t high_water_bytes() const { return high_water_; }

  // Takes scratch until destroyed. Scopes nest.
  class Scope {
   public:
    explicit Scope(Workspace* workspace);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

    // Uninitialised, 64-byte aligned.
    void* Bytes(size_t bytes);
    template <class T>
    T* Array(size_t count) {
      return static_cast<T*>(Bytes(count * sizeof(T)));
    }
    Tensor Take(DType dtype, Shape shape);

   private:
    Workspace* workspace_;
    size_t chunk_;
    size_t used_;
  };

 private:
  struct Chunk;
  Device device_;
  size_t chunk_bytes_;
  std::vector<std::unique_ptr<Chunk>> chunks_;
  size_t current_ = 0;  // chunk in use
  size_t used_ = 0;     // bytes used of the current chunk
  size_t high_water_ = 0;
};

}  // namespace halfstep
