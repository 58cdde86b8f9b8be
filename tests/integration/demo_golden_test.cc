// SPDX-License-Identifier: Apache-2.0
// The demo's base model in FP32 against what transformers made of the same folder
// (tests/golden/make_demo_golden.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/time/clock.h"
#include "common/base/file.h"
#include "common/tokenizer/tokenizer.h"
#include "rollout_server/generation/generate.h"
#include "tests/kernels/tolerance.h"
#include "tests/rollout_server/tiny_model.h"
#include "tests/testing/float32_weights.h"

namespace halfstep {
namespace {

using ::testing::FloatNear;
using ::testing::Pointwise;

constexpr absl::Duration kPatience = absl::Seconds(120);
constexpr size_t kMaxFileBytes = 16 << 20;
constexpr const char* kResponses[] = {"worked", "greedy", "sampled"};

std::vector<int32_t> Ids(const nlohmann::json& array) { return array; }
std::vector<float> Floats(const nlohmann::json& array) { return array; }

std::string Sha256(const std::string& bytes) {
  std::string digest(EVP_MAX_MD_SIZE, '\0');
  unsigned size = 0;
  EXPECT_EQ(EVP_Digest(bytes.data(), bytes.size(), reinterpret_cast<unsigned char*>(digest.data()),
                       &size, EVP_sha256(), nullptr),
            1);
  digest.resize(size);
  return absl::BytesToHexString(digest);
}

class DemoGoldenTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* source = std::getenv("HALFSTEP_SOURCE_DIR");
    ASSERT_NE(source, nullptr) << "run through ctest, or set HALFSTEP_SOURCE_DIR";
    folder_ = std::string(source) + "/deploy/examples/demo/model";
    const auto text = ReadFile(std::string(source) + "/tests/golden/demo/base.json", kMaxFileBytes);
    ASSERT_TRUE(text.ok()) << text.status();
    golden_ = nlohmann::json::parse(*text);
    ASSERT_GE(golden_["cases"].size(), 16u);
    const auto stored = ReadFile(folder_ + "/model.safetensors", kMaxFileBytes);
    ASSERT_TRUE(stored.ok()) << stored.status();
    ASSERT_EQ(Sha256(*stored), golden_["weights_sha256"])
        << "the model was made again: run tests/golden/make_demo_golden.py";
    auto weights = LoadFloat32Weights(folder_);
    ASSERT_TRUE(weights.ok()) << weights.status();
    weights_ = *std::move(weights);
  }

  std::string folder_;
  nlohmann::json golden_;
  std::shared_ptr<const ModelWeights> weights_;
};

TEST_F(DemoGoldenTest, TokenizesAsTransformers) {
  const std::string path = folder_ + "/tokenizer.json";
  const auto tokenizer = Tokenizer::FromJson(ReadFile(path, kMaxFileBytes).value(), path);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (const auto& c : golden_["cases"]) {
    EXPECT_EQ((*tokenizer)->Encode(c["prompt"].get<std::string>()), Ids(c["prompt_tokens"]));
    for (const char* response : kResponses) {
      EXPECT_EQ((*tokenizer)->Decode(Ids(c[response]["tokens"])), c[response]["text"]);
    }
  }
}

TEST_F(DemoGoldenTest, LearnerLogProbsMatchTransformers) {
  std::vector<std::pair<std::vector<int32_t>, std::vector<int32_t>>> sequences;
  std::vector<std::vector<float>> expected;
  for (const auto& c : golden_["cases"]) {
    for (const char* response : kResponses) {
      sequences.emplace_back(Ids(c["prompt_tokens"]), Ids(c[response]["tokens"]));
      expected.push_back(Floats(c[response]["log_probs"]));
    }
  }
  const auto log_probs = LearnerLogProbs(*weights_, sequences, 1.0f);
  ASSERT_EQ(log_probs.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_THAT(log_probs[i], Pointwise(FloatNear(tolerance::kOracleLogProb), expected[i]))
        << "response " << i;
  }
}

TEST_F(DemoGoldenTest, GreedyGenerationMatchesTransformers) {
  EngineOptions options;
  options.config = weights_->config();
  options.dtype = DType::kFloat32;
  options.max_sequence_tokens = weights_->config().max_positions;
  options.max_sequences = 8;
  options.threads = 2;
  auto engine = Engine::Create(options);
  ASSERT_TRUE(engine.ok()) << engine.status();
  (*engine)->SetWeights(weights_, 0, [](const absl::Status& status) { EXPECT_TRUE(status.ok()); });

  std::vector<GroupRequest> requests;
  for (const auto& c : golden_["cases"]) {
    GroupRequest& request = requests.emplace_back();
    request.prompt = Ids(c["prompt_tokens"]);
    request.sampling.temperature = 0;
    request.sampling.max_new_tokens = 48;
    request.group = requests.size();
    request.version = 0;
  }
  const auto samples = GenerateAll(engine->get(), std::move(requests), absl::Now() + kPatience);
  ASSERT_TRUE(samples.ok()) << samples.status();
  for (size_t i = 0; i < samples->size(); ++i) {
    const Sample& sample = (*samples)[i].at(0);
    const nlohmann::json& greedy = golden_["cases"][i]["greedy"];
    EXPECT_EQ(sample.tokens, Ids(greedy["tokens"])) << greedy["text"];
    EXPECT_THAT(sample.log_probs,
                Pointwise(FloatNear(tolerance::kOracleLogProb), Floats(greedy["log_probs"])))
        << greedy["text"];
  }
}

}  // namespace
}  // namespace halfstep
