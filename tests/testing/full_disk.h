// SPDX-License-Identifier: Apache-2.0
// A disk without room, for tests that run as anybody: the program that links full_disk.cc gets its
// own write(2), which fails as the kernel does.
#pragma once

#include <cstdint>

namespace halfstep {

// While it lives, the writes of this process to regular files succeed until `room` bytes in all are
// written; the one that meets the end is cut short, and those after it fail with ENOSPC. Standard
// output and error are exempt. One at a time.
class FullDisk {
 public:
  explicit FullDisk(int64_t room = 0);
  ~FullDisk();
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;
};

}  // namespace halfstep
