// SPDX-License-Identifier: Apache-2.0
// Which parameters a configuration has, where they lie in a flat buffer, and what Hugging Face
// calls them.
#include "common/model/parameter_layout.h"

#include <utility>

#include "kernels/check.h"

namespace halfstep {
namespace {

// 64 elements are at least 128 bytes: every parameter starts on a cache line in every dtype.
constexpr int64_t kAlignment = 64;

std::vector<HuggingFaceSlice> Whole(std::string name, int64_t rows) {
  return {{std::move(name), 0, rows}};
}

}  // namespace

ParameterLayout::ParameterLayout(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size;
  const int64_t ffn = config.intermediate_size;
  const int64_t q = config.q_width();
  const int64_t kv = config.kv_width();

  embedding_ = Add("embedding", {config.vocab_size, hidden}, true,
                   Whole("model.embed_tokens.weight", config.vocab_size));
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string ours = "layers." + std::to_string(i) + ".";
    const std::string theirs = "model.layers." + std::to_string(i) + ".";
    const std::string attention = theirs + "self_attn.";
    const std::string mlp = theirs + "mlp.";
    const auto qkv_slices = [&](const std::string& kind) -> std::vector<HuggingFaceSlice> {
      return {{attention + "q_proj." + kind, 0, q},
              {attention + "k_proj." + kind, q, kv},
              {attention + "v_proj." + kind, q + kv, kv}};
    };
    const auto gate_up_slices = [&](const std::string& kind) -> std::vector<HuggingFaceSlice> {
      return {{mlp + "gate_proj." + kind, 0, ffn}, {mlp + "up_proj." + kind, ffn, ffn}};
    };

    LayerParameters layer;
    layer.attention_norm = Add(ours + "attention.norm", {hidden}, false,
                               Whole(theirs + "input_layernorm.weight", hidden));
    layer.qkv = Add(ours + "attention.qkv", {q + 2 * kv, hidden}, true, qkv_slices("weight"));
    if (config.qkv_bias) {
      layer.qkv_bias = Add(ours + "attention.qkv_bias", {q + 2 * kv}, false, qkv_slices("bias"));
    }
    if (config.qk_norm) {
      layer.q_norm = Add(ours + "attention.q_norm", {config.head_dim}, false,
                         Whole(attention + "q_norm.weight", config.head_dim));
      layer.k_norm = Add(ours + "attention.k_norm", {config.head_dim}, false,
                         Whole(attention + "k_norm.weight", config.head_dim));
    }
    layer.attention_out =
        Add(ours + "attention.out", {hidden, q}, true, Whole(attention + "o_proj.weight", hidden));
    if (config.output_bias) {
      layer.attention_out_bias = Add(ours + "attention.out_bias", {hidden}, false,
                                     Whole(attention + "o_proj.bias", hidden));
    }
    layer.mlp_norm = Add(ours + "mlp.norm", {hidden}, false,
                         Whole(theirs + "post_attention_layernorm.weight", hidden));
    layer.gate_up = Add(ours + "mlp.gate_up", {2 * ffn, hidden}, true, gate_up_slices("weight"));
    if (config.mlp_bias) {
      layer.gate_up_bias = Add(ours + "mlp.gate_up_bias", {2 * ffn}, false, gate_up_slices("bias"));
    }
    layer.down =
        Add(ours + "mlp.down", {hidden, ffn}, true, Whole(mlp + "down_proj.weight", hidden));
    if (config.mlp_bias) {
      layer.down_bias =
          Add(ours + "mlp.down_bias", {hidden}, false, Whole(mlp + "down_proj.bias", hidden));
    }
    layers_.push_back(layer);
  }
  final_norm_ = Add("final_norm", {hidden}, false, Whole("model.norm.weight", hidden));
  head_ = config.tie_word_embeddings ? embedding_
                                     : Add("head", {config.vocab_size, hidden}, true,
                                           Whole("lm_head.weight", config.vocab_size));
}

int ParameterLayout::Add(std::string name, Shape shape, bool weight_decay,
                         std::vector<HuggingFaceSlice> slices) {
  HALFSTEP_CHECK_GT(shape.elements(), 0);
  parameter_count_ += shape.elements();
  const int64_t offset = buffer_elements_;
  buffer_elements_ = (offset + shape.elements() + kAlignment - 1) / kAlignment * kAlignment;
  specs_.push_back({std::move(name), shape, offset, weight_decay, std::move(slices)});
  return static_cast<int>(specs_.size()) - 1;
}

}  // namespace halfstep
