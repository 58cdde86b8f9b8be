// SPDX-License-Identifier: Apache-2.0
// PCRE2's 8-bit library.
#include "common/base/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/utf8.h"

namespace halfstep {
namespace {

constexpr size_t kMaxPatternBytes = 64 << 10;
// Enough for greedy classes over long texts; deeper ones go to the interpreter, whose heap is
// limited.
constexpr size_t kJitStackBytes = 1 << 20;

std::string MessageOf(int error) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(error, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

bool IsLimit(int error) {
  return error == PCRE2_ERROR_MATCHLIMIT || error == PCRE2_ERROR_DEPTHLIMIT ||
         error == PCRE2_ERROR_HEAPLIMIT || error == PCRE2_ERROR_JIT_STACKLIMIT;
}

}  // namespace

absl::StatusOr<Regex> Regex::Compile(const std::string& pattern) {
  const auto invalid = [](const std::string& message) {
    return Error(absl::StatusCode::kInvalidArgument, "INVALID_PATTERN", message);
  };
  if (pattern.size() > kMaxPatternBytes) {
    return invalid(absl::StrCat("a pattern of ", pattern.size(), " bytes; at most ",
                                kMaxPatternBytes, " are accepted"));
  }
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (code == nullptr) {
    return invalid(absl::StrCat("pattern '", pattern.substr(0, 200), "' is wrong at character ",
                                offset + 1, ": ", MessageOf(error)));
  }
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without it the interpreter does the same
  uint32_t groups = 0;
  pcre2_pattern_info(code, PCRE2_INFO_CAPTURECOUNT, &groups);
  std::shared_ptr<const void> owner(
      code, [](void* owned) { pcre2_code_free(static_cast<pcre2_code*>(owned)); });
  return Regex(std::move(owner), static_cast<int>(groups));
}

struct RegexScan::State {
  State(const Regex& r, absl::string_view t) : regex(r), text(t) {}

  const pcre2_code* code() const { return static_cast<const pcre2_code*>(regex.code_.get()); }

  // 0 or more for a match, else PCRE2's error.
  int Match(uint32_t options) {
    return pcre2_match(code(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), next,
                       options, data.get(), context.get());
  }

  template <auto Free>
  struct Deleter {
    template <class T>
    void operator()(T* owned) const {
      Free(owned);
    }
  };

  const Regex regex;
  const absl::string_view text;
  size_t next = 0;       // where the search goes on
  bool checked = false;  // whether the text is known to be UTF-8
  bool finished = false;
  std::unique_ptr<pcre2_match_data, Deleter<pcre2_match_data_free>> data;
  std::unique_ptr<pcre2_match_context, Deleter<pcre2_match_context_free>> context;
  std::unique_ptr<pcre2_jit_stack, Deleter<pcre2_jit_stack_free>> stack;
};

RegexScan::RegexScan(const Regex& regex, absl::string_view text, Limits limits)
    : state_(std::make_unique<State>(regex, text)) {
  state_->data.reset(pcre2_match_data_create_from_pattern(state_->code(), nullptr));
  state_->context.reset(pcre2_match_context_create(nullptr));
  pcre2_set_match_limit(state_->context.get(), limits.steps);
  pcre2_set_heap_limit(state_->context.get(), limits.heap_kib);
  state_->stack.reset(pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr));
  if (state_->stack != nullptr) {
    pcre2_jit_stack_assign(state_->context.get(), nullptr, state_->stack.get());
  }
}

RegexScan::~RegexScan() = default;

absl::StatusOr<bool> RegexScan::Next() {
  State& state = *state_;
  if (state.finished || state.next > state.text.size()) return false;
  if (!state.checked && !IsUtf8(state.text)) {
    state.finished = true;
    return absl::InvalidArgumentError("the text is not valid UTF-8");
  }
  state.checked = true;
  int result = state.Match(PCRE2_NO_UTF_CHECK);
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = state.Match(PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT);
  if (result < 0) {
    state.finished = true;
    if (result == PCRE2_ERROR_NOMATCH) return false;
    const std::string where = absl::StrCat(" on a text of ", state.text.size(), " bytes: ");
    if (IsLimit(result)) {
      return Error(absl::StatusCode::kResourceExhausted, "REGEX_LIMIT",
                   absl::StrCat("the pattern gave up", where, MessageOf(result)));
    }
    return Error(absl::StatusCode::kInternal, "REGEX_FAILED",
                 absl::StrCat("the pattern failed", where, MessageOf(result)));
  }
  const Span match = group(0);
  state.next = match.end;
  if (match.end == match.begin) {
    state.next += std::max<size_t>(1, ReadUtf8(state.text.substr(match.end)).size);
  }
  return true;
}

RegexScan::Span RegexScan::group(int group) const {
  if (group > state_->regex.groups()) return {};
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(state_->data.get());
  if (offsets[2 * group] == PCRE2_UNSET) return {};
  return {true, offsets[2 * group], offsets[2 * group + 1]};
}

}  // namespace halfstep
