// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation/stop_strings.h"

#include <algorithm>
#include <utility>

namespace halfstep {

StopStringMatcher::StopStringMatcher(std::vector<std::string> stop_strings)
    : stop_strings_(std::move(stop_strings)) {
  std::erase(stop_strings_, std::string());
  for (const std::string& stop : stop_strings_) longest_ = std::max(longest_, stop.size());
}

bool StopStringMatcher::Append(std::string_view bytes) {
  if (stop_strings_.empty()) return false;
  tail_.append(bytes);
  const bool found =
      std::any_of(stop_strings_.begin(), stop_strings_.end(),
                  [&](const std::string& stop) { return tail_.find(stop) != std::string::npos; });
  if (tail_.size() >= longest_) tail_.erase(0, tail_.size() - (longest_ - 1));
  return found;
}

}  // namespace halfstep
