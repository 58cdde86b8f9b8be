// SPDX-License-Identifier: Apache-2.0
// Stream: the order in which a CUDA device does its work.
#pragma once

#include <cstdint>

#include "kernels/buffer.h"
#include "kernels/device.h"
#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep {

// Owned by one engine or trainer thread; not thread-safe. Throws DeviceError. Operations of a
// context go to its stream and may still run when they return; what they read and write must stay
// until Synchronize.
class Stream {
 public:
  explicit Stream(Device device);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device device() const { return device_; }
  // Waits until everything on the stream is done; throws when any of it failed.
  void Synchronize();
  // Bytes of equal count, in the order of the stream, from a tensor of the host or the device to
  // one of either. What is read from pageable host memory may be changed once this returns.
  void Copy(ConstTensor from, Tensor to);
  // FP16 forward stores that saturated since the last call. Synchronises.
  int64_t TakeSaturatedStores();

  void* native() const { return native_; }  // cudaStream_t
  // Device memory: one counter.
  unsigned long long* saturation_counter() {
    return static_cast<unsigned long long*>(counter_.data());
  }

 private:
  Device device_;
  Buffer counter_;
  void* native_ = nullptr;
};

// Adds what the stream of `ctx` counted to ctx.saturated_stores; waits for the stream. Nothing to
// do on the CPU.
void AddSaturatedStores(const ExecContext& ctx);

// Bytes of equal count from a tensor of the host or a device to one of either, after all that the
// device has been given before; done on return. For what is rare: loading, saving, publishing.
void CopyAndWait(ConstTensor from, Tensor to);

}  // namespace halfstep
