// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>

namespace halfstep {

// A device refused or failed: no such device, a driver too old, a kernel that could not be started
// or that failed. The message names the device, the call or the kernel with its shape, and the
// driver's own words. After a kernel failed nothing on that device can be used any more by this
// process.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace halfstep
