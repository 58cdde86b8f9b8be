// SPDX-License-Identifier: Apache-2.0
// HostMirror: numbers that both the host and a device read and write.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "kernels/buffer.h"
#include "kernels/exec_context.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace halfstep {

// `capacity` values of T in the memory of a device and on the host; for the CPU that is the same
// memory, and the copies do nothing. Not thread-safe.
template <class T>
class HostMirror {
 public:
  HostMirror() = default;
  HostMirror(const std::string& name, int64_t capacity, Device device)
      : host_(name, DTypeOf<T>::value, {capacity}) {
    if (device != kCpuDevice) device_ = OwnedTensor(name, DTypeOf<T>::value, {capacity}, device);
  }

  int64_t capacity() const { return host_.view().elements(); }
  T* host() { return host_.view().template as<T>(); }
  const T* host() const { return host_.view().template as<T>(); }
  // The device's values [begin, begin + count): [count].
  Tensor device(int64_t begin, int64_t count) { return Side().Rows(begin, count); }

  // Makes one side of values [begin, begin + count) that of the other. ToHost waits for the stream,
  // and so for what writes the values; after ToDevice the host's may be changed at once.
  void ToDevice(const ExecContext& ctx, int64_t begin, int64_t count) {
    if (device_.view().empty()) return;
    ctx.stream->Copy(host_.view().Rows(begin, count), device_.view().Rows(begin, count));
  }
  void ToHost(const ExecContext& ctx, int64_t begin, int64_t count) {
    if (device_.view().empty()) return;
    ctx.stream->Copy(device_.view().Rows(begin, count), host_.view().Rows(begin, count));
    ctx.stream->Synchronize();
  }

 private:
  Tensor Side() { return device_.view().empty() ? host_.view() : device_.view(); }

  OwnedTensor host_;
  OwnedTensor device_;  // empty for the CPU
};

}  // namespace halfstep
