// SPDX-License-Identifier: Apache-2.0
// UTF-8 and regular expressions.
#include <vector>

#include "common/base/error_reason.h"
#include "common/base/regex.h"
#include "common/base/utf8.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(Utf8Test, EveryCodePointSurvives) {
  for (char32_t c = 0; c <= 0x10ffff; c += c < 0x900 ? 1 : 97) {
    if (c >= 0xd800 && c <= 0xdfff) continue;
    std::string text;
    AppendUtf8(text, c);
    const Utf8Step step = ReadUtf8(text);
    ASSERT_TRUE(step.valid) << static_cast<uint32_t>(c);
    ASSERT_EQ(step.code_point, c);
    ASSERT_EQ(step.size, text.size());
  }
}

TEST(Utf8Test, EachErrorIsReplacedOnce) {
  const std::string r = "\xef\xbf\xbd";
  EXPECT_EQ(ToUtf8("a\xff"
                   "b"),
            "a" + r + "b");
  EXPECT_EQ(ToUtf8("\x80\x80"), r + r);
  EXPECT_EQ(ToUtf8("\xe2\x82"), r);                      // cut short: one error
  EXPECT_EQ(ToUtf8("\xe2\x82z"), r + "z");               // the same before another character
  EXPECT_EQ(ToUtf8("\xed\xa0\x80"), r + r + r);          // a surrogate
  EXPECT_EQ(ToUtf8("\xc0\xaf"), r + r);                  // overlong
  EXPECT_EQ(ToUtf8("\xf4\x90\x80\x80"), r + r + r + r);  // above U+10FFFF
  EXPECT_EQ(ToUtf8("\xf0\x9f\x98\x80 ok"), "\xf0\x9f\x98\x80 ok");
}

TEST(Utf8Test, KnowsWhatMoreBytesCouldComplete) {
  EXPECT_TRUE(ReadUtf8("\xf0\x9f\x98").cut);
  EXPECT_FALSE(ReadUtf8("\xf0\x9fz").cut);
  EXPECT_FALSE(ReadUtf8("\xff").cut);
  EXPECT_FALSE(ReadUtf8("a").cut);
  EXPECT_EQ(ReadUtf8("").size, 0u);
}

std::vector<std::string> Matches(const std::string& pattern, const std::string& text) {
  const Regex regex = Regex::Compile(pattern).value();
  RegexScan scan(regex, text);
  std::vector<std::string> found;
  while (scan.Next().value()) {
    found.push_back(text.substr(scan.group(0).begin, scan.group(0).end - scan.group(0).begin));
  }
  return found;
}

TEST(RegexTest, FindsAllMatchesWithLookaheadAndUnicodeClasses) {
  EXPECT_THAT(Matches(R"(\p{L}+|\s+(?!\S)|\s+)", "\xc3\xa9t\xc3\xa9   on"),
              ElementsAre("\xc3\xa9t\xc3\xa9", "  ", " ", "on"));
  EXPECT_THAT(Matches("z", "abc"), IsEmpty());
}

TEST(RegexTest, EmptyMatchesMoveOnByCodePoints) {
  EXPECT_THAT(Matches("x*", "\xc3\xa9x"), ElementsAre("", "x", ""));
}

TEST(RegexTest, GroupsThatTookNoPartSaySo) {
  const Regex regex = Regex::Compile("(a)|(b)").value();
  EXPECT_EQ(regex.groups(), 2);
  RegexScan scan(regex, "b");
  ASSERT_TRUE(scan.Next().value());
  EXPECT_FALSE(scan.group(1).matched);
  EXPECT_TRUE(scan.group(2).matched);
  EXPECT_FALSE(scan.group(3).matched);
}

TEST(RegexTest, ABadPatternSaysWhere) {
  const absl::Status status = Regex::Compile("ab(c").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), "INVALID_PATTERN");
  EXPECT_THAT(std::string(status.message()), HasSubstr("'ab(c' is wrong at character 5"));
  EXPECT_EQ(ReasonOf(Regex::Compile(std::string(100000, 'a')).status()), "INVALID_PATTERN");
  EXPECT_EQ(ReasonOf(Regex::Compile("\xff").status()), "INVALID_PATTERN");
}

TEST(RegexTest, CatastrophicBacktrackingMeetsItsLimit) {
  const Regex regex = Regex::Compile("(a+)+$").value();
  const std::string text = std::string(5000, 'a') + "b";
  RegexScan scan(regex, text, {.steps = 100'000});
  const absl::Status status = scan.Next().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(status), "REGEX_LIMIT");
  EXPECT_FALSE(scan.Next().value()) << "the scan is over";
}

TEST(RegexTest, InvalidUtf8IsAnError) {
  const Regex regex = Regex::Compile("a").value();
  RegexScan scan(regex, "a\xff");
  EXPECT_EQ(scan.Next().status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(RegexTest, LongTextsDoNotOverflowTheStack) {
  EXPECT_EQ(Matches("(?:.|\\n)+", std::string(1 << 16, 'x')).size(), 1u);
  EXPECT_EQ(Matches("\\p{L}+", std::string(1 << 22, 'x')).size(), 1u);
}

}  // namespace
}  // namespace halfstep
