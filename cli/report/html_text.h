// SPDX-License-Identifier: Apache-2.0
// Text of others in HTML and SVG.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace halfstep {

// `text` as it may stand between tags and in quoted attributes: nothing in it is markup. What is no
// UTF-8, and control characters that documents must not hold, become U+FFFD.
std::string EscapeHtml(absl::string_view text);

}  // namespace halfstep
