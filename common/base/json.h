// SPDX-License-Identifier: Apache-2.0
// JSON from files and peers that nobody vouches for.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "absl/status/statusor.h"

namespace halfstep {

struct JsonLimits {
  // Objects and lists within each other. Copying and printing a value recurse, so what nests
  // without bound would overflow the stack.
  int max_depth = 64;
  // Whether an object that holds a key twice is refused; otherwise the last one counts.
  bool unique_keys = false;
};

// INVALID_ARGUMENT when `text` is not JSON, naming the byte, or exceeds a limit. The message names
// no file.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const JsonLimits& limits = {});

// The same with the keys of objects in the order in which they are written.
absl::StatusOr<nlohmann::ordered_json> ParseOrderedJson(std::string_view text,
                                                        const JsonLimits& limits = {});

}  // namespace halfstep
