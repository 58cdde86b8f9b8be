// SPDX-License-Identifier: Apache-2.0
#include "kernels/check.h"

#include <cstdio>
#include <cstdlib>

namespace halfstep {

void CheckFailed(const char* expression, const std::string& detail, std::source_location location) {
  std::fprintf(stderr, "%s:%u: check failed: %s%s%s\n", location.file_name(), location.line(),
               expression, detail.empty() ? "" : ": ", detail.c_str());
  std::abort();
}

}  // namespace halfstep
