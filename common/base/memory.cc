// SPDX-License-Identifier: Apache-2.0
#include "common/base/memory.h"

#include <algorithm>
#include <fstream>

#include "absl/strings/str_format.h"

namespace halfstep {
namespace {

// The number a file starts with; nothing when it holds another word ("max") or cannot be read.
bool ReadNumber(const std::string& path, size_t* number) {
  std::ifstream file(path);
  return static_cast<bool>(file >> *number);
}

// The number behind `key` in a file of lines "key number ..."; 0 when there is none.
size_t ReadKey(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string word, rest;
  size_t number = 0;
  while (file >> word >> number) {
    if (word == key) return number;
    std::getline(file, rest);
  }
  return 0;
}

}  // namespace

size_t FreeMemoryBytes(const MemorySources& sources) {
  size_t free = ReadKey(sources.meminfo, "MemAvailable:") << 10;
  size_t limit = 0, used = 0;
  if (ReadNumber(sources.cgroup + "/memory.max", &limit) &&
      ReadNumber(sources.cgroup + "/memory.current", &used)) {
    // The kernel drops cached files before it refuses memory.
    used -= std::min(used, ReadKey(sources.cgroup + "/memory.stat", "inactive_file"));
    free = std::min(free, limit > used ? limit - used : 0);
  }
  return free;
}

std::string ShowBytes(size_t bytes) {
  const double mebibytes = static_cast<double>(bytes) / (1 << 20);
  return mebibytes < 1024 ? absl::StrFormat("%.1f MiB", mebibytes)
                          : absl::StrFormat("%.1f GiB", mebibytes / 1024);
}

}  // namespace halfstep
