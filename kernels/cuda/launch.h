// SPDX-License-Identifier: Apache-2.0
// How kernels are started, on the GPU and in the emulator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/check.h"
#include "kernels/cuda/device_code.h"
#include "kernels/cuda/runtime.h"
#include "kernels/exec_context.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"
#if !defined(__CUDACC__)
#include "kernels/cuda/emulator/emulator.h"
#endif

namespace halfstep::cuda {

// The elements of a tensor as kernels take them; T may be const. An empty tensor gives an empty
// pointer. CHECKs that the tensor is on a CUDA device.
template <class T, class Byte>
Pointer<T> PointerTo(BasicTensor<Byte> tensor) {
  if (tensor.empty()) return {};
  HALFSTEP_CHECK(tensor.device().type == DeviceType::kCuda);
  return Pointer<T>(tensor.template as<std::remove_const_t<T>>(), tensor.elements());
}

// Where the kernels of a context count saturated forward stores; empty when nobody counts.
inline Pointer<unsigned long long> SaturationCounter(const ExecContext& ctx) {
  if (ctx.saturated_stores == nullptr) return {};
  return Pointer<unsigned long long>(ctx.stream->saturation_counter(), 1);
}

constexpr int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Puts `kernel` on the stream of `ctx`: shape.grid_x * grid_y blocks of shape.threads threads (a
// multiple of 32). A grid without blocks starts nothing. Throws DeviceError that names the kernel
// and the shape when it cannot be started.
template <class... Parameters, class... Arguments>
void Launch(const ExecContext& ctx, const LaunchShape& shape, void (*kernel)(Parameters...),
            const Arguments&... arguments) {
  HALFSTEP_CHECK(ctx.stream != nullptr);
  if (shape.grid_x == 0 || shape.grid_y == 0) return;
#if defined(__CUDACC__)
  PrepareLaunch(ctx.device.index, shape, reinterpret_cast<const void*>(kernel));
  const dim3 grid(static_cast<unsigned>(shape.grid_x), static_cast<unsigned>(shape.grid_y));
  kernel<<<grid, shape.threads, shape.shared_bytes,
           static_cast<cudaStream_t>(ctx.stream->native())>>>(arguments...);
  CheckLaunched(shape, ctx.stream->native());
#else
  emulator::Run(shape, [&] { kernel(arguments...); });
#endif
}

}  // namespace halfstep::cuda
