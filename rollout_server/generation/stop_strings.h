// SPDX-License-Identifier: Apache-2.0
// StopStringMatcher: finds the first stop string in text that arrives in pieces.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace halfstep {

// Works on bytes, because a token may end in the middle of a code point. Remembers no more than the
// longest stop string needs. Not thread-safe.
class StopStringMatcher {
 public:
  // Empty strings match nothing.
  explicit StopStringMatcher(std::vector<std::string> stop_strings);

  // Whether a stop string ends within `bytes` (it may begin in earlier ones).
  bool Append(std::string_view bytes);

 private:
  std::vector<std::string> stop_strings_;
  size_t longest_ = 0;
  std::string tail_;  // the last longest_ - 1 bytes seen
};

}  // namespace halfstep
