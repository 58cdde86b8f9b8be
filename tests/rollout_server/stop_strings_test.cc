// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation/stop_strings.h"

#include <gtest/gtest.h>

namespace halfstep {
namespace {

TEST(StopStringMatcherTest, FindsAStopWithinOnePiece) {
  StopStringMatcher matcher({"END"});
  EXPECT_FALSE(matcher.Append("some text"));
  EXPECT_TRUE(matcher.Append("then END and more"));
}

TEST(StopStringMatcherTest, FindsAStopSpreadOverPieces) {
  StopStringMatcher matcher({"\n\nQ:"});
  EXPECT_FALSE(matcher.Append("answer\n"));
  EXPECT_FALSE(matcher.Append("\n"));
  EXPECT_FALSE(matcher.Append("Q"));
  EXPECT_TRUE(matcher.Append(": next"));
}

TEST(StopStringMatcherTest, FindsStopsOfDifferentLengths) {
  StopStringMatcher matcher({"x", "abcdef"});
  EXPECT_FALSE(matcher.Append("abc"));
  EXPECT_TRUE(matcher.Append("def"));
  StopStringMatcher other({"x", "abcdef"});
  EXPECT_TRUE(other.Append("x"));
}

TEST(StopStringMatcherTest, DoesNotJoinWhatDoesNotFollow) {
  StopStringMatcher matcher({"ab"});
  EXPECT_FALSE(matcher.Append("a"));
  EXPECT_FALSE(matcher.Append("c"));
  EXPECT_FALSE(matcher.Append("b"));
}

TEST(StopStringMatcherTest, MatchesBytesInsideACodePoint) {
  StopStringMatcher matcher({"\xe2\x82\xac"});  // the euro sign, as three one-byte tokens
  EXPECT_FALSE(matcher.Append("\xe2"));
  EXPECT_FALSE(matcher.Append("\x82"));
  EXPECT_TRUE(matcher.Append("\xac"));
}

TEST(StopStringMatcherTest, NeverStopsWithoutStopStrings) {
  StopStringMatcher none({});
  EXPECT_FALSE(none.Append("anything"));
  StopStringMatcher empty({""});
  EXPECT_FALSE(empty.Append("anything"));
}

}  // namespace
}  // namespace halfstep
