// SPDX-License-Identifier: Apache-2.0
// CMake defines HALFSTEP_VERSION and HALFSTEP_BUILD_TYPE for this file.
#include "common/base/build_info.h"

#include "absl/strings/str_cat.h"

namespace halfstep {

std::string BuildVersion() { return HALFSTEP_VERSION; }

std::string BuildId() {
#if defined(__clang__)
  const char* compiler = "clang ";
#else
  const char* compiler = "g++ ";
#endif
  return absl::StrCat("halfstep ", HALFSTEP_VERSION, " (", compiler, __VERSION__, ", ",
                      HALFSTEP_BUILD_TYPE, ")");
}

}  // namespace halfstep
