// SPDX-License-Identifier: Apache-2.0
// Reading UTF-8 that may be invalid. As in the Unicode standard's recommendation, each longest
// prefix of a code point that goes wrong counts as one error and is replaced by one U+FFFD.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace halfstep {

inline constexpr char32_t kReplacement = 0xfffd;

// What stands at the start of a text.
struct Utf8Step {
  char32_t code_point = kReplacement;  // U+FFFD for an error
  size_t size = 0;                     // bytes taken; 0 only for an empty text
  bool valid = false;
  bool cut = false;  // not valid, but could become so if the text went on
};

Utf8Step ReadUtf8(absl::string_view text);

bool IsUtf8(absl::string_view text);

// `text` with errors replaced; equal to it when it is valid.
std::string ToUtf8(absl::string_view text);

// Appends a code point.
void AppendUtf8(std::string& text, char32_t code_point);

}  // namespace halfstep
