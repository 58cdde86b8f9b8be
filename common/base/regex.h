// SPDX-License-Identifier: Apache-2.0
// Regular expressions by PCRE2 with just-in-time compilation, lookahead, Unicode classes, and
// limits, so that no pattern on no text can hang.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace halfstep {

// A compiled pattern over UTF-8. Immutable and thread-safe; copies share it.
class Regex {
 public:
  // INVALID_ARGUMENT (reason INVALID_PATTERN) naming the position of a mistake, or a pattern above
  // 64 KiB.
  static absl::StatusOr<Regex> Compile(const std::string& pattern);

  // Number of capturing groups.
  int groups() const { return groups_; }

 private:
  friend class RegexScan;
  Regex(std::shared_ptr<const void> code, int groups) : code_(std::move(code)), groups_(groups) {}
  std::shared_ptr<const void> code_;  // pcre2_code
  int groups_;
};

// The successive, not overlapping matches of a pattern in one text, from its start. Not
// thread-safe.
class RegexScan {
 public:
  struct Limits {
    uint32_t steps = 10'000'000;  // of backtracking, per match
    uint32_t heap_kib = 65'536;
  };

  // `text` must outlive the scan. A text that is no valid UTF-8 has no matches but an error.
  RegexScan(const Regex& regex, absl::string_view text, Limits limits);
  RegexScan(const Regex& regex, absl::string_view text) : RegexScan(regex, text, Limits()) {}
  ~RegexScan();
  RegexScan(const RegexScan&) = delete;
  RegexScan& operator=(const RegexScan&) = delete;

  // Moves to the next match; false when there is none. RESOURCE_EXHAUSTED (reason REGEX_LIMIT) when
  // a limit was met, INTERNAL (reason REGEX_FAILED) when PCRE2 failed in another way, as it does on
  // a pattern that calls itself without end, INVALID_ARGUMENT for invalid UTF-8; the scan is then
  // over. After an empty match the search goes on one code point further.
  absl::StatusOr<bool> Next();

  // Of the current match: where group `group` (0: the whole match) lies. `matched` is false for a
  // group that took no part.
  struct Span {
    bool matched = false;
    size_t begin = 0;
    size_t end = 0;
  };
  Span group(int group) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace halfstep
