// SPDX-License-Identifier: Apache-2.0
// Told tokens against drawn ones.
#include "rollout_server/generation/token_scorer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "rollout_server/generation/generate.h"
#include "tests/rollout_server/tiny_model.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kLongest = 160;

class TokenScorerTest : public testing::Test {
 protected:
  TokenScorerTest() : threads_(2) {
    ctx_.workspace = &workspace_;
    ctx_.threads = &threads_;
  }

  static TokenScorerOptions Options(DType dtype) {
    TokenScorerOptions options;
    options.config = TinyConfig();
    options.dtype = dtype;
    options.max_sequence_tokens = kLongest;
    options.max_sequences = 5;
    options.max_step_tokens = 30;
    return options;
  }

  Workspace workspace_;
  ThreadPool threads_;
  ExecContext ctx_;
};

class TokenScorerDTypeTest : public TokenScorerTest, public testing::WithParamInterface<DType> {};

// A prompt, a response and what the engine said about it.
struct Drawn {
  std::vector<int32_t> tokens;
  int64_t prompt_tokens;
  std::vector<float> log_probs;
};

struct Draws {
  float temperature = 1;
  Profile profile = Profile::kBitwise;
  std::vector<int64_t> prompts = {1, 7, 33, 70};  // their lengths
  uint32_t samples = 3;
};

std::vector<Drawn> DrawWithEngine(DType dtype, const Draws& draws = {}) {
  EngineOptions options;
  options.config = TinyConfig();
  options.dtype = dtype;
  options.max_sequence_tokens = kLongest;
  options.max_sequences = 8;
  options.profile = draws.profile;
  auto engine = *Engine::Create(std::move(options));
  engine->SetWeights(TinyWeights(1, dtype), 0, [](const absl::Status&) {});
  std::vector<GroupRequest> requests;
  std::mt19937 random(5);
  for (const int64_t prompt_tokens : draws.prompts) {
    GroupRequest& request = requests.emplace_back();
    for (int64_t i = 0; i < prompt_tokens; ++i) {
      request.prompt.push_back(static_cast<int32_t>(2 + random() % 259));
    }
    request.samples = draws.samples;
    request.sampling.temperature = draws.temperature;
    request.sampling.max_new_tokens = 60;
  }
  const auto groups = GenerateAll(engine.get(), requests, absl::Now() + absl::Seconds(60));
  EXPECT_TRUE(groups.ok()) << groups.status();
  std::vector<Drawn> drawn;
  for (size_t i = 0; i < requests.size() && groups.ok(); ++i) {
    for (const Sample& sample : (*groups)[i]) {
      Drawn& one = drawn.emplace_back();
      one.tokens = requests[i].prompt;
      one.prompt_tokens = static_cast<int64_t>(one.tokens.size());
      one.tokens.insert(one.tokens.end(), sample.tokens.begin(), sample.tokens.end());
      one.log_probs = sample.log_probs;
    }
  }
  return drawn;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<GivenTokens> Given(const std::vector<Drawn>& drawn) {
  std::vector<GivenTokens> given;
  for (const Drawn& one : drawn) given.push_back({one.tokens, one.prompt_tokens});
  return given;
}

// More sequences than lanes, and prompts longer than a pass.
TEST_P(TokenScorerDTypeTest, GivesTheBitsThatTheEngineGaveWhenItDrew) {
  for (const float temperature : {1.0f, 0.6f, 0.0f}) {
    const std::vector<Drawn> drawn = DrawWithEngine(GetParam(), {.temperature = temperature});
    ASSERT_EQ(drawn.size(), 12u);
    const auto scorer = TokenScorer::Create(ctx_, Options(GetParam()));
    ASSERT_TRUE(scorer.ok()) << scorer.status();
    int64_t last = 0;
    const auto scored = (*scorer)->Score(*TinyWeights(1, GetParam()), Given(drawn), temperature,
                                         [&last](int64_t done) {
                                           EXPECT_GE(done, last);
                                           last = done;
                                           return true;
                                         });
    ASSERT_TRUE(scored.ok()) << scored.status();
    EXPECT_EQ(last, 12);
    ASSERT_EQ(scored->size(), drawn.size());
    for (size_t i = 0; i < drawn.size(); ++i) {
      EXPECT_TRUE(SameBits((*scored)[i], drawn[i].log_probs))
          << Name(GetParam()) << " sequence " << i;
    }
  }
}

// Alone in every pass, as the engine had it.
TEST_P(TokenScorerDTypeTest, GivesTheBitsOfTheFastProfileToOneSequence) {
  ctx_.profile = Profile::kFast;
  const std::vector<Drawn> drawn =
      DrawWithEngine(GetParam(), {.profile = Profile::kFast, .prompts = {20}, .samples = 1});
  ASSERT_EQ(drawn.size(), 1u);
  const auto scorer = *TokenScorer::Create(ctx_, Options(GetParam()));
  const auto scored = scorer->Score(*TinyWeights(1, GetParam()), Given(drawn), 1, nullptr);
  ASSERT_TRUE(scored.ok()) << scored.status();
  EXPECT_TRUE(SameBits((*scored)[0], drawn[0].log_probs));
}

INSTANTIATE_TEST_SUITE_P(DTypes, TokenScorerDTypeTest,
                         testing::Values(DType::kFloat16, DType::kBFloat16, DType::kFloat32),
                         [](const auto& test) { return std::string(Name(test.param)); });

TEST_F(TokenScorerTest, AnotherPrecisionGivesOtherBits) {
  const std::vector<Drawn> drawn = DrawWithEngine(DType::kFloat16);
  const auto scorer = *TokenScorer::Create(ctx_, Options(DType::kFloat32));
  const auto scored = scorer->Score(*TinyWeights(1, DType::kFloat32), Given(drawn), 1, nullptr);
  ASSERT_TRUE(scored.ok()) << scored.status();
  EXPECT_NE((*scored)[0], drawn[0].log_probs);
}

TEST_F(TokenScorerTest, ACacheTooSmallForAllTakesThemInTurn) {
  const std::vector<Drawn> drawn = DrawWithEngine(DType::kFloat16);
  TokenScorerOptions options = Options(DType::kFloat16);
  options.kv_cache_bytes = 5 * KvCache::BytesPerBlock(TinyConfig(), DType::kFloat16);
  const auto scorer = TokenScorer::Create(ctx_, options);
  ASSERT_TRUE(scorer.ok()) << scorer.status();
  const auto scored = (*scorer)->Score(*TinyWeights(1), Given(drawn), 1, nullptr);
  ASSERT_TRUE(scored.ok()) << scored.status();
  for (size_t i = 0; i < drawn.size(); ++i) EXPECT_EQ((*scored)[i], drawn[i].log_probs);

  options.kv_cache_bytes = 1;
  EXPECT_EQ(ReasonOf(TokenScorer::Create(ctx_, options).status()), "KV_CACHE_TOO_SMALL");
}

TEST_F(TokenScorerTest, StopsWhenAsked) {
  const std::vector<Drawn> drawn = DrawWithEngine(DType::kFloat16);
  const auto scorer = *TokenScorer::Create(ctx_, Options(DType::kFloat16));
  const auto scored =
      scorer->Score(*TinyWeights(1), Given(drawn), 1, [](int64_t) { return false; });
  EXPECT_EQ(scored.status().code(), absl::StatusCode::kCancelled);
}

TEST_F(TokenScorerTest, ANonFiniteLogitIsNamed) {
  auto weights = UnpackedTinyWeights(1, DType::kBFloat16);
  const int norm = weights->parameters().layout().final_norm();
  StoreAs(DType::kBFloat16, weights->parameters().view(norm).data(), 0,
          std::numeric_limits<float>::infinity());
  const std::vector<int32_t> tokens = {5, 6, 7};
  const auto scorer = *TokenScorer::Create(ctx_, Options(DType::kBFloat16));
  const auto scored =
      scorer->Score(*Packed(weights), std::vector<GivenTokens>{{tokens, 1}}, 1, nullptr);
  EXPECT_EQ(ReasonOf(scored.status()), "NON_FINITE_LOGITS");
  EXPECT_THAT(std::string(scored.status().message()),
              HasSubstr("response token 0 of sequence 0 is not finite in bf16"));
}

}  // namespace
}  // namespace halfstep
