// SPDX-License-Identifier: Apache-2.0
#include "tests/testing/full_disk.h"

#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <limits>

namespace halfstep {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

std::atomic<int64_t> room_left = kNoLimit;

// Takes up to `wanted` bytes of what is left.
int64_t TakeRoom(int64_t wanted) {
  int64_t left = room_left.load();
  int64_t taken = 0;
  do {
    if (left == kNoLimit) return wanted;
    taken = std::min(wanted, left);
  } while (!room_left.compare_exchange_weak(left, left - taken));
  return taken;
}

bool IsRegularFile(int fd) {
  struct stat info;
  return fd > STDERR_FILENO && fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
}

}  // namespace

FullDisk::FullDisk(int64_t room) { room_left = room; }
FullDisk::~FullDisk() { room_left = kNoLimit; }

}  // namespace halfstep

// Takes the place of libc's.
extern "C" ssize_t write(int fd, const void* data, size_t size) {
  if (size > 0 && halfstep::room_left.load() != halfstep::kNoLimit && halfstep::IsRegularFile(fd)) {
    size = static_cast<size_t>(halfstep::TakeRoom(static_cast<int64_t>(size)));
    if (size == 0) {
      errno = ENOSPC;
      return -1;
    }
  }
  return syscall(SYS_write, fd, data, size);
}
