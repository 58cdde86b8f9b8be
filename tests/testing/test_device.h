// SPDX-License-Identifier: Apache-2.0
// Where the tensors of a test live and its operations run. The same tests are built for the CPU
// and, with HALFSTEP_TEST_CUDA, for CUDA: under the emulator, whose device memory is memory of the
// process, or for a GPU with HALFSTEP_CUDA_MANAGED, so that tests may read and write it.
#pragma once

#include <cstdint>

#include "kernels/device.h"

namespace halfstep {

#if defined(HALFSTEP_TEST_CUDA)
inline constexpr Device kTestDevice{DeviceType::kCuda, 0};
#else
inline constexpr Device kTestDevice = kCpuDevice;
#endif
// Also of a GPU, which takes the emulator's sizes.
inline constexpr bool kEmulated = kTestDevice.type == DeviceType::kCuda;

// A size that a test needs to have enough to divide among threads; emulation, which is slow,
// divides a small one as well.
constexpr int64_t Many(int64_t on_cpu, int64_t emulated) { return kEmulated ? emulated : on_cpu; }

}  // namespace halfstep
