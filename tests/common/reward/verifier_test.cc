// SPDX-License-Identifier: Apache-2.0
#include "common/reward/verifier.h"

#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "common/reward/number.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "halfstep/v1/training_job.pb.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<const Verifier> Make(v1::RewardType type, const std::string& pattern = "") {
  v1::RewardSpec spec;
  spec.set_type(type);
  spec.set_pattern(pattern);
  auto verifier = MakeVerifier(spec);
  EXPECT_TRUE(verifier.ok()) << verifier.status();
  return *std::move(verifier);
}

void ExpectScore(const Verifier& verifier, const std::string& response, const std::string& answer,
                 double score) {
  const Reward reward = verifier.Score(response, answer);
  EXPECT_EQ(reward.outcome, RewardOutcome::kScore) << response << ": " << reward.detail;
  EXPECT_EQ(reward.score, score) << response << " against " << answer;
}

TEST(ExactMatchTest, IgnoresWhiteSpaceAroundOnly) {
  const auto verifier = Make(v1::REWARD_TYPE_EXACT_MATCH);
  ExpectScore(*verifier, " 42\n", "42", 1);
  ExpectScore(*verifier, "42", " 42 ", 1);
  ExpectScore(*verifier, "4 2", "42", 0);
  ExpectScore(*verifier, "42.0", "42", 0);
  ExpectScore(*verifier, "", "", 1);
}

TEST(ExactMatchTest, ComparesWhatThePatternExtracts) {
  const auto verifier = Make(v1::REWARD_TYPE_EXACT_MATCH, R"(answer:\s*(\w+))");
  ExpectScore(*verifier, "answer: cat, no, answer: dog.", "dog", 1);
  ExpectScore(*verifier, "answer: cat", "dog", 0);
  ExpectScore(*verifier, "dog", "dog", 0);
}

TEST(NumericTest, ComparesTheLastNumberByValue) {
  const auto verifier = Make(v1::REWARD_TYPE_NUMERIC);
  ExpectScore(*verifier, "1+2=3, carry 0, so 42.", "42", 1);
  ExpectScore(*verifier, "42.0", "42", 1);
  ExpectScore(*verifier, "0042", "42", 1);
  ExpectScore(*verifier, "it is 1,234,567", "1234567", 1);
  ExpectScore(*verifier, "42 or 43", "42", 0);
  ExpectScore(*verifier, "no idea", "42", 0);
  ExpectScore(*verifier, "", "42", 0);
}

TEST(NumericTest, AnAnswerThatIsNoNumberIsUnscorable) {
  const auto verifier = Make(v1::REWARD_TYPE_NUMERIC);
  for (const char* answer : {"", "cat", "42 cats", "1 2", "-"}) {
    const Reward reward = verifier->Score("42", answer);
    EXPECT_EQ(reward.outcome, RewardOutcome::kUnscorable) << answer;
    EXPECT_THAT(reward.detail, HasSubstr("is no number"));
  }
}

TEST(RegexRewardTest, TheExtractionOfTheLastMatchEqualsTheAnswer) {
  const auto verifier = Make(v1::REWARD_TYPE_REGEX, R"(<answer>(.*?)</answer>)");
  ExpectScore(*verifier, "<answer>1</answer> <answer> 2 </answer>", "2", 1);
  ExpectScore(*verifier, "<answer>1</answer>", "2", 0);
  ExpectScore(*verifier, "2", "2", 0);
}

TEST(RegexRewardTest, WithoutAGroupTheWholeMatchCounts) {
  const auto verifier = Make(v1::REWARD_TYPE_REGEX, R"(\d+$)");
  ExpectScore(*verifier, "so 12", "12", 1);
  ExpectScore(*verifier, "so 12", "2", 0);
}

TEST(RegexRewardTest, ARowWithoutAnAnswerAsksForTheFormAlone) {
  const auto verifier = Make(v1::REWARD_TYPE_REGEX, R"(^<think>.*</think>)");
  ExpectScore(*verifier, "<think>a</think>", "", 1);
  ExpectScore(*verifier, "a", "", 0);
}

TEST(RegexRewardTest, AGroupThatTookNoPartIsEmpty) {
  const auto verifier = Make(v1::REWARD_TYPE_REGEX, R"((a)|b)");
  ExpectScore(*verifier, "ab", "a", 0);
  ExpectScore(*verifier, "ba", "a", 1);
}

TEST(RegexRewardTest, SurvivesInvalidUtf8) {
  ExpectScore(*Make(v1::REWARD_TYPE_REGEX, "b"), "\xff b", "b", 1);
}

TEST(RegexRewardTest, CatastrophicBacktrackingIsATimeoutAndSoon) {
  for (const auto type : {v1::REWARD_TYPE_REGEX, v1::REWARD_TYPE_EXACT_MATCH}) {
    const auto verifier = Make(type, "(a|aa)+$");
    const Reward reward = verifier->Score(std::string(10'000, 'a') + "b", "a");
    EXPECT_EQ(reward.outcome, RewardOutcome::kTimeout);
    EXPECT_THAT(reward.detail, HasSubstr("gave up"));
  }
}

TEST(RegexRewardTest, APatternThatCallsItselfWithoutEndIsAnError) {
  for (const auto type : {v1::REWARD_TYPE_REGEX, v1::REWARD_TYPE_EXACT_MATCH}) {
    const Reward reward = Make(type, "(a?(?2))(b?(?1))")->Score("aab", "a");
    EXPECT_EQ(reward.outcome, RewardOutcome::kError);
    EXPECT_THAT(reward.detail, HasSubstr("the pattern failed on a text of 3 bytes"));
  }
}

TEST(MakeVerifierTest, RefusesABadPatternAndNamesTheField) {
  v1::RewardSpec spec;
  spec.set_type(v1::REWARD_TYPE_REGEX);
  spec.set_pattern("(a");
  const absl::Status status = MakeVerifier(spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), "INVALID_PATTERN");
  ASSERT_EQ(GetFieldViolations(status).size(), 1u);
  EXPECT_EQ(GetFieldViolations(status)[0].field, "reward.pattern");
  spec.clear_pattern();
  EXPECT_EQ(ReasonOf(MakeVerifier(spec).status()), "INVALID_PATTERN");
}

TEST(MakeVerifierTest, RefusesATypeItDoesNotKnow) {
  v1::RewardSpec spec;
  EXPECT_EQ(MakeVerifier(spec).status().code(), absl::StatusCode::kInvalidArgument);
  spec.set_type(static_cast<v1::RewardType>(99));
  EXPECT_EQ(MakeVerifier(spec).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(NumberTest, EqualValuesAreEqual) {
  for (const char* text : {"1200", "+1200", "01200.00", "1,200", "1.2e3", "12E+2", "120000e-2"}) {
    EXPECT_EQ(ToNumber(text), ToNumber("1200")) << text;
  }
  EXPECT_EQ(ToNumber("-0"), ToNumber("0"));
  EXPECT_EQ(ToNumber(".5"), ToNumber("0.50"));
  EXPECT_EQ(ToNumber("\xe2\x88\x92\x33"), ToNumber("-3"));
  EXPECT_NE(ToNumber("-3"), ToNumber("3"));
  EXPECT_NE(ToNumber("0.1000000000000000000001"), ToNumber("0.1"));
}

TEST(NumberTest, FindsTheLastOne) {
  const auto last = [](const char* text, const char* want) {
    EXPECT_EQ(LastNumber(text), ToNumber(want)) << text;
  };
  last("5-3", "3");
  last("5 - 3", "3");
  last("= -3", "-3");
  last("(-3)", "-3");
  last("x-3", "3");
  last("-3", "-3");
  last("1,2", "2");
  last("1,2345", "2345");
  last("12,345.", "12345");
  last("3.14.15", "15");
  last("$1,000.50!", "1000.5");
  last("7e", "7");
  last("v2.0", "2");
  EXPECT_EQ(LastNumber("none - at all."), std::nullopt);
}

TEST(NumberTest, WholeTextsOnly) {
  for (const char* text : {"", "a", "1a", "a1", "1 2", "--1", "1.", "-", "1,23", "1e"}) {
    EXPECT_EQ(ToNumber(text), std::nullopt) << text;
  }
  EXPECT_NE(ToNumber(" 7 "), std::nullopt);
}

TEST(NumberTest, LongNumbersAreExactAndQuick) {
  const std::string digits(1'000'000, '9');
  EXPECT_EQ(LastNumber("x " + digits), ToNumber(digits));
  EXPECT_NE(LastNumber(digits), ToNumber(digits + "9"));
}

}  // namespace
}  // namespace halfstep
