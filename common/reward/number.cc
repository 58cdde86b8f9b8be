// SPDX-License-Identifier: Apache-2.0
// A hand-written scanner: linear in the text, exact for any number of digits.
#include "common/reward/number.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_replace.h"

namespace halfstep {
namespace {

constexpr size_t kMaxExponentDigits = 9;

bool IsDigit(char c) { return absl::ascii_isdigit(static_cast<unsigned char>(c)); }

// Digits from `at` on.
size_t DigitsAt(absl::string_view text, size_t at) {
  size_t end = at;
  while (end < text.size() && IsDigit(text[end])) ++end;
  return end - at;
}

// Whether what stands before a minus makes it an operation.
bool IsOperand(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == ')' || c == ']' ||
         static_cast<unsigned char>(c) >= 0x80;
}

Decimal Canonical(bool negative, std::string digits, int64_t exponent) {
  const size_t first = digits.find_first_not_of('0');
  if (first == std::string::npos) return {};
  const size_t last = digits.find_last_not_of('0');
  exponent += static_cast<int64_t>(digits.size() - 1 - last);
  return {negative, digits.substr(first, last - first + 1), exponent};
}

class Scanner {
 public:
  explicit Scanner(absl::string_view text) : text_(text) {}

  // The number at or behind `at`, moving `at` behind it.
  std::optional<Decimal> Next(size_t& at) {
    while (at < text_.size() && !StartsNumber(at)) ++at;
    if (at >= text_.size()) return std::nullopt;
    begin_ = at;
    bool negative = false;
    if (begin_ > 0 && (text_[begin_ - 1] == '-' || text_[begin_ - 1] == '+') &&
        (begin_ == 1 || !IsOperand(text_[begin_ - 2]))) {
      --begin_;
      negative = text_[begin_] == '-';
    }
    std::string digits = Integer(at);
    int64_t exponent = 0;
    if (at + 1 < text_.size() && text_[at] == '.' && IsDigit(text_[at + 1])) {
      const size_t size = DigitsAt(text_, at + 1);
      digits.append(text_.data() + at + 1, size);
      exponent = -static_cast<int64_t>(size);
      at += 1 + size;
    }
    exponent += Exponent(at);
    return Canonical(negative, std::move(digits), exponent);
  }

  // Where the number just read begins, sign included.
  size_t begin() const { return begin_; }

 private:
  bool StartsNumber(size_t at) const {
    if (IsDigit(text_[at])) return true;
    return text_[at] == '.' && at + 1 < text_.size() && IsDigit(text_[at + 1]) &&
           (at == 0 || !IsDigit(text_[at - 1]));
  }

  // Digits, with commas between groups of three.
  std::string Integer(size_t& at) const {
    size_t size = DigitsAt(text_, at);
    std::string digits(text_.substr(at, size));
    at += size;
    if (size == 0 || size > 3) return digits;
    while (at < text_.size() && text_[at] == ',' && DigitsAt(text_, at + 1) == 3) {
      digits.append(text_.data() + at + 1, 3);
      at += 4;
    }
    return digits;
  }

  int64_t Exponent(size_t& at) const {
    if (at >= text_.size() || (text_[at] != 'e' && text_[at] != 'E')) return 0;
    size_t begin = at + 1;
    const bool negative = begin < text_.size() && text_[begin] == '-';
    if (begin < text_.size() && (text_[begin] == '-' || text_[begin] == '+')) ++begin;
    const size_t size = DigitsAt(text_, begin);
    if (size == 0 || size > kMaxExponentDigits) return 0;
    int64_t value = 0;
    for (size_t i = begin; i < begin + size; ++i) value = value * 10 + (text_[i] - '0');
    at = begin + size;
    return negative ? -value : value;
  }

  absl::string_view text_;
  size_t begin_ = 0;
};

std::string WithAsciiMinus(absl::string_view text) {
  return absl::StrReplaceAll(text, {{"\xe2\x88\x92", "-"}});
}

}  // namespace

std::optional<Decimal> LastNumber(absl::string_view text) {
  const std::string plain = WithAsciiMinus(text);
  Scanner scanner(plain);
  std::optional<Decimal> last;
  size_t at = 0;
  while (std::optional<Decimal> number = scanner.Next(at)) last = std::move(number);
  return last;
}

std::optional<Decimal> ToNumber(absl::string_view text) {
  const std::string plain = WithAsciiMinus(absl::StripAsciiWhitespace(text));
  Scanner scanner(plain);
  size_t at = 0;
  std::optional<Decimal> number = scanner.Next(at);
  if (!number || scanner.begin() != 0 || at != plain.size()) return std::nullopt;
  return number;
}

}  // namespace halfstep
