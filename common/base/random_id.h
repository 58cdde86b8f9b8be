// SPDX-License-Identifier: Apache-2.0
// Random identities, from the system's generator: for request ids and incarnations, never for
// anything that a run's results depend on.
#pragma once

#include <string>

namespace halfstep {

// A version 4 UUID, lower case.
std::string RandomUuid();

}  // namespace halfstep
