// SPDX-License-Identifier: Apache-2.0
// The list of parameters: names, shapes, Hugging Face slices, offsets.
#include "common/model/parameter_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "common/model/parameter_buffer.h"

namespace halfstep {
namespace {

ModelConfig SmallConfig(Architecture architecture) {
  ModelConfig config;
  config.architecture = architecture;
  config.vocab_size = 50;
  config.hidden_size = 24;
  config.intermediate_size = 40;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 10;
  config.qk_norm = architecture == Architecture::kQwen3;
  config.qkv_bias = architecture == Architecture::kQwen2;
  return config;
}

std::map<std::string, Shape> HuggingFaceShapes(const ParameterLayout& layout) {
  std::map<std::string, Shape> shapes;
  for (const ParameterSpec& spec : layout.specs()) {
    for (const HuggingFaceSlice& slice : spec.slices) {
      shapes[slice.name] =
          spec.shape.rank() == 1 ? Shape{slice.rows} : Shape{slice.rows, spec.shape[1]};
    }
  }
  return shapes;
}

TEST(ParameterLayoutTest, Qwen3NamesAndShapes) {
  const auto shapes = HuggingFaceShapes(ParameterLayout(SmallConfig(Architecture::kQwen3)));
  EXPECT_EQ(shapes.size(), 3u + 2 * 11);
  EXPECT_EQ(shapes.at("model.embed_tokens.weight"), (Shape{50, 24}));
  EXPECT_EQ(shapes.at("model.layers.1.self_attn.q_proj.weight"), (Shape{40, 24}));
  EXPECT_EQ(shapes.at("model.layers.1.self_attn.k_proj.weight"), (Shape{20, 24}));
  EXPECT_EQ(shapes.at("model.layers.1.self_attn.v_proj.weight"), (Shape{20, 24}));
  EXPECT_EQ(shapes.at("model.layers.0.self_attn.o_proj.weight"), (Shape{24, 40}));
  EXPECT_EQ(shapes.at("model.layers.0.self_attn.q_norm.weight"), (Shape{10}));
  EXPECT_EQ(shapes.at("model.layers.0.self_attn.k_norm.weight"), (Shape{10}));
  EXPECT_EQ(shapes.at("model.layers.0.mlp.gate_proj.weight"), (Shape{40, 24}));
  EXPECT_EQ(shapes.at("model.layers.0.mlp.down_proj.weight"), (Shape{24, 40}));
  EXPECT_EQ(shapes.at("model.layers.0.post_attention_layernorm.weight"), (Shape{24}));
  EXPECT_EQ(shapes.at("model.norm.weight"), (Shape{24}));
  EXPECT_EQ(shapes.at("lm_head.weight"), (Shape{50, 24}));
}

TEST(ParameterLayoutTest, TiedModelHasNoHeadOfItsOwn) {
  ModelConfig config = SmallConfig(Architecture::kQwen3);
  config.tie_word_embeddings = true;
  const ParameterLayout layout(config);
  EXPECT_TRUE(layout.tied());
  EXPECT_EQ(layout.head(), layout.embedding());
  EXPECT_EQ(HuggingFaceShapes(layout).count("lm_head.weight"), 0u);
}

TEST(ParameterLayoutTest, Qwen2HasBiasesOnQueriesKeysAndValuesOnly) {
  const auto shapes = HuggingFaceShapes(ParameterLayout(SmallConfig(Architecture::kQwen2)));
  EXPECT_EQ(shapes.at("model.layers.0.self_attn.v_proj.bias"), (Shape{20}));
  EXPECT_EQ(shapes.count("model.layers.0.self_attn.o_proj.bias"), 0u);
  EXPECT_EQ(shapes.count("model.layers.0.self_attn.q_norm.weight"), 0u);
}

TEST(ParameterLayoutTest, OffsetsAreAlignedAndDisjointAndSlicesCoverAllRows) {
  const ParameterLayout layout(SmallConfig(Architecture::kQwen2));
  int64_t end = 0;
  int64_t elements = 0;
  for (const ParameterSpec& spec : layout.specs()) {
    EXPECT_EQ(spec.offset % 64, 0) << spec.name;
    EXPECT_GE(spec.offset, end) << spec.name;
    end = spec.offset + spec.shape.elements();
    elements += spec.shape.elements();
    EXPECT_EQ(spec.weight_decay, spec.shape.rank() == 2) << spec.name;
    int64_t row = 0;
    for (const HuggingFaceSlice& slice : spec.slices) {
      EXPECT_EQ(slice.first_row, row) << slice.name;
      row += slice.rows;
    }
    EXPECT_EQ(row, spec.shape[0]) << spec.name;
  }
  EXPECT_GE(layout.buffer_elements(), end);
  EXPECT_EQ(layout.parameter_count(), elements);
}

TEST(ParameterBufferTest, ViewsShareOneZeroedArray) {
  auto layout = std::make_shared<const ParameterLayout>(SmallConfig(Architecture::kLlama));
  ParameterBuffer buffer(layout, DType::kFloat32, "test");
  EXPECT_EQ(buffer.flat().elements(), layout->buffer_elements());
  const int norm = layout->final_norm();
  buffer.view(norm).as<float>()[3] = 2.0f;
  EXPECT_EQ(buffer.flat().as<float>()[layout->specs()[norm].offset + 3], 2.0f);
  EXPECT_EQ(buffer.flat().as<float>()[layout->specs()[norm].offset + 2], 0.0f);
}

}  // namespace
}  // namespace halfstep
