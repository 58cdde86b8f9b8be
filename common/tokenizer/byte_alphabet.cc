// SPDX-License-Identifier: Apache-2.0
// The alphabet of GPT-2.
#include "common/tokenizer/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "common/base/utf8.h"

namespace halfstep {
namespace {

constexpr int kAlphabetEnd = 256 + 68;

constexpr bool StandsForItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

// The byte of each character below kAlphabetEnd, or -1.
constexpr std::array<int16_t, kAlphabetEnd> MakeTable() {
  std::array<int16_t, kAlphabetEnd> table{};
  for (int16_t& entry : table) entry = -1;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    table[StandsForItself(byte) ? byte : next++] = static_cast<int16_t>(byte);
  }
  return table;
}

constexpr std::array<int16_t, kAlphabetEnd> kTable = MakeTable();

}  // namespace

std::optional<std::string> BytesOfSpelling(absl::string_view spelling) {
  std::string bytes;
  while (!spelling.empty()) {
    const Utf8Step step = ReadUtf8(spelling);
    if (!step.valid || step.code_point >= kAlphabetEnd || kTable[step.code_point] < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(kTable[step.code_point]));
    spelling.remove_prefix(step.size);
  }
  return bytes;
}

}  // namespace halfstep
