// SPDX-License-Identifier: Apache-2.0
// Decimal numbers in text, compared exactly.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace halfstep {

// digits * 10^exponent, with neither leading nor trailing zeros in `digits`; zero has no digits.
// Equal numbers are equal member by member.
struct Decimal {
  bool negative = false;
  std::string digits;
  int64_t exponent = 0;
  friend bool operator==(const Decimal&, const Decimal&) = default;
};

// What stands in the text as a number: a sign, digits with or without commas between thousands, a
// fraction, a power of ten (12, -3.50, +1,234, .5, 6e-3). U+2212 is a minus, too. A minus between
// two operands (5-3, x-3) is not a sign.

// The last number in `text`; nothing when there is none.
std::optional<Decimal> LastNumber(absl::string_view text);

// `text` as a number, white space around it aside; nothing when there is anything else.
std::optional<Decimal> ToNumber(absl::string_view text);

}  // namespace halfstep
