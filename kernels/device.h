// SPDX-License-Identifier: Apache-2.0
// Where a tensor lives and where an operation runs.
#pragma once

#include <cstdint>

namespace halfstep {

enum class DeviceType : uint8_t { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int8_t index = 0;
  friend constexpr bool operator==(Device, Device) = default;
};

inline constexpr Device kCpuDevice{};

}  // namespace halfstep
