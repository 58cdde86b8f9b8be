// SPDX-License-Identifier: Apache-2.0
// Table 3-7 of the Unicode standard: well-formed byte sequences.
#include "common/base/utf8.h"

#include <cstdint>

namespace halfstep {
namespace {

// What a first byte asks for: how many bytes in all, and the range of the second.
struct Lead {
  size_t size = 0;  // 0: no code point starts with this byte
  uint8_t low = 0x80;
  uint8_t high = 0xbf;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xc2) return {};
  if (byte < 0xe0) return {2};
  if (byte == 0xe0) return {3, 0xa0, 0xbf};
  if (byte == 0xed) return {3, 0x80, 0x9f};  // no surrogates
  if (byte < 0xf0) return {3};
  if (byte == 0xf0) return {4, 0x90, 0xbf};
  if (byte < 0xf4) return {4};
  if (byte == 0xf4) return {4, 0x80, 0x8f};
  return {};
}

}  // namespace

Utf8Step ReadUtf8(absl::string_view text) {
  if (text.empty()) return {};
  const uint8_t first = static_cast<uint8_t>(text[0]);
  const Lead lead = LeadOf(first);
  if (lead.size == 0) return {kReplacement, 1, false, false};
  if (lead.size == 1) return {first, 1, true, false};
  char32_t code_point = first & (0x7f >> lead.size);
  for (size_t i = 1; i < lead.size; ++i) {
    if (i == text.size()) return {kReplacement, i, false, true};
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    const bool fits = i == 1 ? byte >= lead.low && byte <= lead.high : (byte & 0xc0) == 0x80;
    if (!fits) return {kReplacement, i, false, false};
    code_point = (code_point << 6) | (byte & 0x3f);
  }
  return {code_point, lead.size, true, false};
}

bool IsUtf8(absl::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = ReadUtf8(text);
    if (!step.valid) return false;
    text.remove_prefix(step.size);
  }
  return true;
}

std::string ToUtf8(absl::string_view text) {
  if (IsUtf8(text)) return std::string(text);
  std::string result;
  result.reserve(text.size() + 2);
  while (!text.empty()) {
    const Utf8Step step = ReadUtf8(text);
    AppendUtf8(result, step.code_point);
    text.remove_prefix(step.size);
  }
  return result;
}

void AppendUtf8(std::string& text, char32_t code_point) {
  const auto byte = [&text](char32_t value) { text.push_back(static_cast<char>(value)); };
  if (code_point < 0x80) {
    byte(code_point);
  } else if (code_point < 0x800) {
    byte(0xc0 | (code_point >> 6));
    byte(0x80 | (code_point & 0x3f));
  } else if (code_point < 0x10000) {
    byte(0xe0 | (code_point >> 12));
    byte(0x80 | ((code_point >> 6) & 0x3f));
    byte(0x80 | (code_point & 0x3f));
  } else {
    byte(0xf0 | (code_point >> 18));
    byte(0x80 | ((code_point >> 12) & 0x3f));
    byte(0x80 | ((code_point >> 6) & 0x3f));
    byte(0x80 | (code_point & 0x3f));
  }
}

}  // namespace halfstep
