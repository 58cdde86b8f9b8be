// SPDX-License-Identifier: Apache-2.0
// The built-in verifiers and the switch that makes them.
#include "common/reward/verifier.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/regex.h"
#include "common/base/status_macros.h"
#include "common/base/utf8.h"
#include "common/config/enum_names.h"
#include "common/reward/number.h"
#include "halfstep/v1/training_job.pb.h"

namespace halfstep {
namespace {

Reward ScoreOf(bool correct) { return {RewardOutcome::kScore, correct ? 1.0 : 0.0, ""}; }

bool EqualTrimmed(absl::string_view a, absl::string_view b) {
  return absl::StripAsciiWhitespace(a) == absl::StripAsciiWhitespace(b);
}

// Backtracking steps per place of the text that keep a whole scan within a second or two.
uint32_t StepsFor(const std::string& text) {
  constexpr size_t kTotalSteps = 1'000'000'000;
  return static_cast<uint32_t>(std::clamp<size_t>(kTotalSteps / (text.size() + 1), 1'000, 100'000));
}

// What a pattern takes from a text: the first group of the last match, or all of the match when the
// pattern has no group. No match gives no text.
absl::StatusOr<std::optional<std::string>> Extract(const Regex& pattern, const std::string& text) {
  RegexScan scan(pattern, text, {.steps = StepsFor(text)});
  std::optional<std::string> extracted;
  while (true) {
    HALFSTEP_ASSIGN_OR_RETURN(const bool found, scan.Next());
    if (!found) return extracted;
    const RegexScan::Span span = scan.group(pattern.groups() > 0 ? 1 : 0);
    extracted = span.matched ? text.substr(span.begin, span.end - span.begin) : "";
  }
}

Reward FailureOf(const absl::Status& status) {
  return {absl::IsResourceExhausted(status) ? RewardOutcome::kTimeout : RewardOutcome::kError, 0,
          std::string(status.message())};
}

class ExactMatch final : public Verifier {
 public:
  explicit ExactMatch(std::optional<Regex> pattern) : pattern_(std::move(pattern)) {}

  Reward Score(const std::string& response, const std::string& answer) const override {
    if (!pattern_) return ScoreOf(EqualTrimmed(response, answer));
    const auto extracted = Extract(*pattern_, ToUtf8(response));
    if (!extracted.ok()) return FailureOf(extracted.status());
    return ScoreOf(extracted->has_value() && EqualTrimmed(**extracted, answer));
  }

 private:
  const std::optional<Regex> pattern_;
};

class Numeric final : public Verifier {
 public:
  Reward Score(const std::string& response, const std::string& answer) const override {
    const std::optional<Decimal> want = ToNumber(answer);
    if (!want) {
      return {RewardOutcome::kUnscorable, 0,
              absl::StrCat("the row's answer '", answer.substr(0, 80), "' is no number")};
    }
    return ScoreOf(LastNumber(response) == want);
  }
};

class RegexMatch final : public Verifier {
 public:
  explicit RegexMatch(Regex pattern) : pattern_(std::move(pattern)) {}

  Reward Score(const std::string& response, const std::string& answer) const override {
    const auto extracted = Extract(pattern_, ToUtf8(response));
    if (!extracted.ok()) return FailureOf(extracted.status());
    if (!extracted->has_value()) return ScoreOf(false);
    // A row without an answer asks for the form alone.
    return ScoreOf(absl::StripAsciiWhitespace(answer).empty() || EqualTrimmed(**extracted, answer));
  }

 private:
  const Regex pattern_;
};

absl::StatusOr<Regex> CompilePattern(const std::string& pattern) {
  absl::StatusOr<Regex> regex = Regex::Compile(pattern);
  if (regex.ok()) return regex;
  return WithFieldViolations(WithContext(regex.status(), "reward.pattern"),
                             {{"reward.pattern", std::string(regex.status().message())}});
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Verifier>> MakeVerifier(const v1::RewardSpec& spec) {
  std::optional<Regex> pattern;
  if (!spec.pattern().empty()) {
    HALFSTEP_ASSIGN_OR_RETURN(pattern, CompilePattern(spec.pattern()));
  }
  switch (spec.type()) {
    case v1::REWARD_TYPE_EXACT_MATCH:
      return std::make_unique<const ExactMatch>(std::move(pattern));
    case v1::REWARD_TYPE_NUMERIC:
      return std::make_unique<const Numeric>();
    case v1::REWARD_TYPE_REGEX:
      if (pattern) return std::make_unique<const RegexMatch>(*std::move(pattern));
      return Error(absl::StatusCode::kInvalidArgument, "INVALID_PATTERN",
                   "reward.pattern is required by reward.type regex");
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("reward.type ", YamlName(spec.type()), " is not known to this build"));
  }
}

}  // namespace halfstep
