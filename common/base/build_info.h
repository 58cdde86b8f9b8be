// SPDX-License-Identifier: Apache-2.0
// Which build this is.
#pragma once

#include <string>

namespace halfstep {

// Such as "0.1.0".
std::string BuildVersion();

// Version, compiler and kind of build, such as "halfstep 0.1.0 (g++ 12.2.0, Release)": stored with
// runs and exchanged between servers.
std::string BuildId();

}  // namespace halfstep
