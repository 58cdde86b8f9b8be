// SPDX-License-Identifier: Apache-2.0
#include "kernels/stream.h"

#include <cstring>

#include "kernels/check.h"
#include "kernels/cuda/runtime.h"

namespace halfstep {

Stream::Stream(Device device)
    : device_(device), counter_("saturation counter", sizeof(unsigned long long), device) {
  HALFSTEP_CHECK(device.type == DeviceType::kCuda);
  native_ = cuda::CreateStream(device.index);
}

Stream::~Stream() { cuda::DestroyStream(device_.index, native_); }

void Stream::Synchronize() { cuda::SynchronizeStream(native_); }

void Stream::Copy(ConstTensor from, Tensor to) {
  HALFSTEP_CHECK_EQ(from.bytes(), to.bytes());
  if (from.bytes() > 0) cuda::CopyBytes(native_, to.data(), from.data(), from.bytes());
}

int64_t Stream::TakeSaturatedStores() {
  unsigned long long count = 0;
  cuda::CopyBytes(native_, &count, counter_.data(), sizeof(count));
  cuda::ZeroBytes(native_, counter_.data(), sizeof(count));
  Synchronize();
  return static_cast<int64_t>(count);
}

void AddSaturatedStores(const ExecContext& ctx) {
  if (ctx.stream == nullptr || ctx.saturated_stores == nullptr) return;
  *ctx.saturated_stores += ctx.stream->TakeSaturatedStores();
}

void CopyAndWait(ConstTensor from, Tensor to) {
  HALFSTEP_CHECK_EQ(from.bytes(), to.bytes());
  if (from.bytes() == 0) return;
  if (from.device() == kCpuDevice && to.device() == kCpuDevice) {
    std::memcpy(to.data(), from.data(), from.bytes());
    return;
  }
  const Device device = to.device() == kCpuDevice ? from.device() : to.device();
  cuda::SynchronizeDevice(device.index);
  Stream stream(device);
  stream.Copy(from, to);
  stream.Synchronize();
}

}  // namespace halfstep
