// SPDX-License-Identifier: Apache-2.0
#include "kernels/check.h"

#include <cstdio>
#include <cstdlib>

namespace halfstep {

void CheckFailed(const char* expression, const std::string& detail, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: check failed: %s%s%s\n", file, line, expression,
               detail.empty() ? "" : ": ", detail.c_str());
  std::abort();
}

}  // namespace halfstep
