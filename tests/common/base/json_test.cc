// SPDX-License-Identifier: Apache-2.0
#include "common/base/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace halfstep {
namespace {

using ::testing::HasSubstr;

std::string Nested(size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

void ExpectRefused(const std::string& text, const JsonLimits& limits, const std::string& message) {
  for (const absl::Status& status :
       {ParseJson(text, limits).status(), ParseOrderedJson(text, limits).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

TEST(JsonTest, ParsesAndKeepsOrderWhereAsked) {
  const std::string text = R"({"b": [1, {"c": null}], "a": "x"})";
  EXPECT_EQ(ParseJson(text).value().dump(), R"({"a":"x","b":[1,{"c":null}]})");
  EXPECT_EQ(ParseOrderedJson(text).value().dump(), R"({"b":[1,{"c":null}],"a":"x"})");
}

TEST(JsonTest, WhatIsNotJsonIsRefusedWithItsPlace) {
  ExpectRefused(R"({"a": tru})", {}, "is not valid JSON: parse error at line 1, column 10");
  ExpectRefused("", {}, "is not valid JSON");
  ExpectRefused("[1] 2", {}, "is not valid JSON");
  ExpectRefused("\"\xff\"", {}, "is not valid JSON");
  ExpectRefused("[1e999]", {}, "is not valid JSON");
}

TEST(JsonTest, NestingIsBounded) {
  EXPECT_TRUE(ParseJson(Nested(64)).ok());
  ExpectRefused(Nested(65), {}, "is nested more than 64 deep");
  EXPECT_TRUE(ParseJson(Nested(3), {.max_depth = 3}).ok());
  ExpectRefused(R"({"a": {"b": [{}]}})", {.max_depth = 3}, "is nested more than 3 deep");
  // Neither closed nor small: refused before it is built.
  ExpectRefused(std::string(size_t{8} << 20, '['), {}, "is nested more than 64 deep");
}

TEST(JsonTest, RepeatedKeysAreRefusedWhereAsked) {
  const std::string text = R"({"a": 1, "b": {"a": 2}, "a": 3})";
  EXPECT_EQ(ParseJson(text).value()["a"], 3);
  ExpectRefused(text, {.unique_keys = true}, "holds \"a\" twice");
  EXPECT_TRUE(ParseJson(R"([{"a": 1}, {"a": {"a": 2}}])", {.unique_keys = true}).ok());
}

}  // namespace
}  // namespace halfstep
