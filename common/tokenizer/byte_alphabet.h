// SPDX-License-Identifier: Apache-2.0
// The printable characters by which byte-level vocabularies spell bytes: printable Latin-1 stands
// for itself, the other 68 bytes for U+0100 and up, in order (space is U+0120).
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace halfstep {

// The bytes that a token's spelling stands for; nothing when it holds a character outside the
// alphabet.
std::optional<std::string> BytesOfSpelling(absl::string_view spelling);

}  // namespace halfstep
