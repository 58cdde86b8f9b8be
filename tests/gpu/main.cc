// SPDX-License-Identifier: Apache-2.0
// The main of tests that run on a GPU: without one they are skipped, not passed.
#include <gtest/gtest.h>

#include <cstdio>

#include "kernels/buffer.h"
#include "kernels/device_error.h"

namespace {

constexpr int kSkipped = 77;  // CTest's SKIP_RETURN_CODE

}  // namespace

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  try {
    const halfstep::Buffer probe("probe", 1, {halfstep::DeviceType::kCuda, 0});
  } catch (const halfstep::DeviceError& error) {
    std::printf("no device to test on: %s\n", error.what());
    return kSkipped;
  }
  return RUN_ALL_TESTS();
}
