// SPDX-License-Identifier: Apache-2.0
// How much memory this process may still take.
#pragma once

#include <cstddef>
#include <string>

namespace halfstep {

// Where FreeMemoryBytes looks; replaced by tests.
struct MemorySources {
  std::string meminfo = "/proc/meminfo";
  std::string cgroup = "/sys/fs/cgroup";  // version 2
};

// Memory that can be taken without swapping, within the limit of the control group, whose file
// cache counts as free; 0 when the system does not say.
size_t FreeMemoryBytes(const MemorySources& sources = {});

// "12.3 GiB", or MiB below one of these.
std::string ShowBytes(size_t bytes);

}  // namespace halfstep
