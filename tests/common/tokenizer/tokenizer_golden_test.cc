// SPDX-License-Identifier: Apache-2.0
// The same ids and texts as Hugging Face's library (tests/golden/make_tokenizer_golden.py).
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "common/base/file.h"
#include "common/tokenizer/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace halfstep {
namespace {

class TokenizerGoldenTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const char* source = std::getenv("HALFSTEP_SOURCE_DIR");
    ASSERT_NE(source, nullptr) << "run by ctest";
    folder_ = std::string(source) + "/tests/golden/tokenizer/" + GetParam();
    auto tokenizer = Tokenizer::FromJson(ReadFile(folder_ + "/tokenizer.json", 1 << 24).value(),
                                         folder_ + "/tokenizer.json");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *tokenizer;
    cases_ = nlohmann::json::parse(ReadFile(folder_ + "/cases.json", 1 << 24).value());
    ASSERT_GT(cases_.size(), 100u);
  }

  std::string folder_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  nlohmann::json cases_;
};

TEST_P(TokenizerGoldenTest, EncodesAsTheReference) {
  for (const nlohmann::json& c : cases_) {
    const std::string text = c["text"].get<std::string>();
    EXPECT_EQ(tokenizer_->Encode(text), c["ids"].get<std::vector<int32_t>>()) << c["text"];
    EXPECT_EQ(tokenizer_->Encode(text, SpecialTokens::kOmit),
              c["plain"].get<std::vector<int32_t>>())
        << c["text"];
  }
}

TEST_P(TokenizerGoldenTest, DecodesAsTheReference) {
  for (const nlohmann::json& c : cases_) {
    const auto ids = c["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer_->Decode(ids), c["decoded"].get<std::string>()) << c["text"];
    EXPECT_EQ(tokenizer_->Decode(ids, SpecialTokens::kOmit), c["skipped"].get<std::string>())
        << c["text"];
  }
}

TEST_P(TokenizerGoldenTest, StreamsWhatItDecodes) {
  for (const nlohmann::json& c : cases_) {
    StreamingDecoder decoder(tokenizer_, SpecialTokens::kInclude);
    std::string text;
    for (const int32_t id : c["ids"].get<std::vector<int32_t>>()) text += decoder.Push(id);
    EXPECT_EQ(text + decoder.Finish(), c["decoded"].get<std::string>()) << c["text"];
  }
}

INSTANTIATE_TEST_SUITE_P(, TokenizerGoldenTest, ::testing::Values("qwen", "llama3", "gpt2"),
                         [](const auto& tested) { return tested.param; });

}  // namespace
}  // namespace halfstep
