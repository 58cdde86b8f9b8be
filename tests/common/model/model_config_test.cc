// SPDX-License-Identifier: Apache-2.0
// config.json: what is read, what is refused and how the refusal names it.
#include "common/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "common/base/error_reason.h"
#include "nlohmann/json.hpp"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

Json BaseConfig(const std::string& model_type) {
  return {{"model_type", model_type}, {"vocab_size", 300},      {"hidden_size", 64},
          {"intermediate_size", 96},  {"num_hidden_layers", 3}, {"num_attention_heads", 4},
          {"num_key_value_heads", 2}, {"head_dim", 24},         {"max_position_embeddings", 512},
          {"rope_theta", 10000.0},    {"rms_norm_eps", 1e-5},   {"hidden_act", "silu"}};
}

absl::StatusOr<ModelConfig> Parse(const Json& json) {
  return ParseModelConfig(json.dump(), "folder/config.json");
}

void ExpectRefused(const Json& json, absl::StatusCode code, const std::string& reason,
                   const std::string& message) {
  const auto config = Parse(json);
  ASSERT_FALSE(config.ok()) << json.dump();
  EXPECT_EQ(config.status().code(), code) << config.status();
  EXPECT_EQ(ReasonOf(config.status()), reason) << config.status();
  EXPECT_THAT(std::string(config.status().message()), HasSubstr("folder/config.json: " + message));
}

void ExpectInvalid(const Json& json, const std::string& message) {
  ExpectRefused(json, absl::StatusCode::kInvalidArgument, "INVALID_MODEL_CONFIG", message);
}

void ExpectUnsupported(const Json& json, const std::string& message) {
  ExpectRefused(json, absl::StatusCode::kUnimplemented, "UNSUPPORTED_MODEL_CONFIG", message);
}

TEST(ModelConfigTest, ReadsSizes) {
  const auto config = Parse(BaseConfig("qwen3"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, Architecture::kQwen3);
  EXPECT_EQ(config->vocab_size, 300);
  EXPECT_EQ(config->hidden_size, 64);
  EXPECT_EQ(config->intermediate_size, 96);
  EXPECT_EQ(config->layers, 3);
  EXPECT_EQ(config->q_width(), 96);
  EXPECT_EQ(config->kv_width(), 48);
  EXPECT_EQ(config->max_positions, 512);
  EXPECT_FLOAT_EQ(config->rms_norm_epsilon, 1e-5f);
  EXPECT_TRUE(config->qk_norm);
  EXPECT_FALSE(config->qkv_bias);
  EXPECT_FALSE(config->tie_word_embeddings);
}

TEST(ModelConfigTest, BiasesFollowTheArchitecture) {
  EXPECT_TRUE(Parse(BaseConfig("qwen2"))->qkv_bias);
  EXPECT_FALSE(Parse(BaseConfig("qwen2"))->output_bias);
  Json llama = BaseConfig("llama");
  llama["attention_bias"] = true;
  llama["mlp_bias"] = true;
  EXPECT_TRUE(Parse(llama)->qkv_bias);
  EXPECT_TRUE(Parse(llama)->output_bias);
  EXPECT_TRUE(Parse(llama)->mlp_bias);
}

TEST(ModelConfigTest, HeadDimDefaultsAsInHuggingFace) {
  Json llama = BaseConfig("llama");
  llama.erase("head_dim");
  EXPECT_EQ(Parse(llama)->head_dim, 16);
  Json qwen3 = BaseConfig("qwen3");
  qwen3.erase("head_dim");
  EXPECT_EQ(Parse(qwen3)->head_dim, 128);
}

TEST(ModelConfigTest, ReadsBothSpellingsOfRope) {
  Json old_spelling = BaseConfig("llama");
  old_spelling["rope_theta"] = 5e5;
  old_spelling["rope_scaling"] = {{"rope_type", "llama3"},
                                  {"factor", 32.0},
                                  {"low_freq_factor", 1.0},
                                  {"high_freq_factor", 4.0},
                                  {"original_max_position_embeddings", 8192}};
  Json new_spelling = BaseConfig("llama");
  new_spelling.erase("rope_theta");
  new_spelling["rope_parameters"] = old_spelling["rope_scaling"];
  new_spelling["rope_parameters"]["rope_theta"] = 5e5;
  for (const Json& json : {old_spelling, new_spelling}) {
    const auto config = Parse(json);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->rope.theta, 5e5);
    ASSERT_TRUE(config->rope.llama3.has_value());
    EXPECT_EQ(config->rope.llama3->factor, 32.0);
    EXPECT_EQ(config->rope.llama3->original_max_positions, 8192);
  }
}

TEST(ModelConfigTest, RefusesConfigWithoutRope) {
  Json json = BaseConfig("llama");
  json.erase("rope_theta");
  ExpectInvalid(json, "rope_theta is missing");
}

TEST(ModelConfigTest, RefusesContradictoryRope) {
  Json json = BaseConfig("llama");
  json["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e6}};
  ExpectInvalid(json, "rope_parameters.rope_theta = 1e+06 contradicts");
}

TEST(ModelConfigTest, NamesAnArchitectureThatIsNotSupported) {
  const auto expect = [](const char* field, const Json& value, const std::string& message) {
    Json json = BaseConfig("qwen2");
    json[field] = value;
    ExpectRefused(json, absl::StatusCode::kUnimplemented, "UNSUPPORTED_ARCHITECTURE", message);
  };
  expect("model_type", "mixtral",
         "model_type = \"mixtral\" is not supported; supported are llama, qwen2 and qwen3 (dense)");
  expect("architectures", Json::array({"Qwen2ForSequenceClassification"}),
         "architectures names \"Qwen2ForSequenceClassification\"; supported for qwen2 is "
         "Qwen2ForCausalLM");
}

TEST(ModelConfigTest, NamesWhatChangesTheMathematics) {
  const std::tuple<const char*, Json, const char*> cases[] = {
      {"hidden_act", "gelu", "hidden_act = \"gelu\" is not supported: the MLP is SwiGLU"},
      {"use_sliding_window", true, "use_sliding_window = true is not supported"},
      {"layer_types", Json::array({"full_attention", "sliding_attention", "full_attention"}),
       "layer_types may only hold \"full_attention\""},
      {"attention_dropout", 0.1, "attention_dropout = 0.1 is not supported"},
      {"partial_rotary_factor", 0.5, "partial_rotary_factor = 0.5 is not supported"},
      {"quantization_config", {{"bits", 4}}, "quantization_config = {\"bits\":4} is not supported"},
      {"final_logit_softcapping", 30.0,
       "final_logit_softcapping is not known, so it may change the mathematics; remove it"},
      {"rope_scaling",
       {{"type", "yarn"}, {"factor", 4.0}},
       "rope_scaling.rope_type = \"yarn\" is not supported; supported are"}};
  for (const auto& [field, value, message] : cases) {
    Json json = BaseConfig("qwen2");
    json[field] = value;
    ExpectUnsupported(json, message);
  }
  Json mistral_like = BaseConfig("llama");
  mistral_like["sliding_window"] = 4096;
  ExpectUnsupported(mistral_like, "sliding_window = 4096 is not supported: attention is over");
}

TEST(ModelConfigTest, AcceptsWhatLeavesTheMathematicsAlone) {
  Json json = BaseConfig("qwen2");
  json["use_sliding_window"] = false;
  json["sliding_window"] = 32768;
  json["layer_types"] = Json::array({"full_attention", "full_attention", "full_attention"});
  json["attention_dropout"] = 0.0;
  json["torch_dtype"] = "bfloat16";
  json["_name_or_path"] = "x";
  json["transformers_version"] = "4.57.1";
  json["rope_scaling"] = nullptr;
  EXPECT_TRUE(Parse(json).ok()) << Parse(json).status();
}

// Values are shown in errors, and showing what nests without bound would overflow the stack.
TEST(ModelConfigTest, RefusesDeepNesting) {
  const size_t depth = size_t{4} << 20;
  const std::string deep = std::string(depth, '[') + std::string(depth, ']');
  const absl::Status config =
      ParseModelConfig(R"({"model_type": "llama", "hidden_size": )" + deep + "}", "config.json")
          .status();
  EXPECT_EQ(config.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(config.message()), HasSubstr("config.json: is nested more than 64 deep"));
  ModelConfig merged;
  const absl::Status generation =
      MergeGenerationConfig(R"({"eos_token_id": )" + deep + "}", "generation_config.json", &merged);
  EXPECT_EQ(generation.code(), absl::StatusCode::kInvalidArgument);
}

TEST(ModelConfigTest, RefusesSizesThatDoNotFitTogether) {
  const std::pair<const char*, Json> cases[] = {{"vocab_size", 0},
                                                {"vocab_size", "300"},
                                                {"hidden_size", 1e30},
                                                {"head_dim", 7},
                                                {"num_key_value_heads", 3},
                                                {"num_hidden_layers", -1},
                                                {"intermediate_size", 1.5},
                                                {"rms_norm_eps", "small"},
                                                {"rope_theta", 0},
                                                {"tie_word_embeddings", 1},
                                                {"eos_token_id", 300},
                                                {"eos_token_id", Json::array({1, -2})},
                                                {"hidden_size", 18446744073709551615u}};
  for (const auto& [field, value] : cases) {
    Json json = BaseConfig("qwen3");
    json[field] = value;
    const char* blamed =
        std::string(field) == "num_key_value_heads" ? "num_attention_heads" : field;
    ExpectInvalid(json, blamed);
  }
}

TEST(ModelConfigTest, RefusesTextThatIsNotAnObject) {
  for (const char* text : {"", "{", "[1]", "nonsense", "{\"vocab_size\": }"}) {
    const auto config = ParseModelConfig(text, "c.json");
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_EQ(ReasonOf(config.status()), "INVALID_MODEL_CONFIG") << text;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr("c.json: ")) << text;
  }
}

TEST(ModelConfigTest, EosMayBeANumberOrAListAndGenerationConfigAddsToIt) {
  Json json = BaseConfig("qwen3");
  json["eos_token_id"] = 7;
  auto config = Parse(json);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->eos_token_ids, ElementsAre(7));
  ASSERT_TRUE(
      MergeGenerationConfig(R"({"eos_token_id": [7, 9], "top_k": 20})", "g", &*config).ok());
  EXPECT_THAT(config->eos_token_ids, ElementsAre(7, 9));
  EXPECT_EQ(MergeGenerationConfig(R"({"eos_token_id": 300})", "g", &*config).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace halfstep
