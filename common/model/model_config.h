// SPDX-License-Identifier: Apache-2.0
// ModelConfig: what a Hugging Face config.json says about the mathematics of a decoder.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops/rope.h"

namespace halfstep {

enum class Architecture { kLlama, kQwen2, kQwen3 };

struct ModelConfig {
  Architecture architecture = Architecture::kQwen3;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;  // may differ from hidden_size / heads
  float rms_norm_epsilon = 1e-6f;
  RopeParameters rope;
  int64_t max_positions = 0;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;     // qwen2, or llama with attention_bias
  bool output_bias = false;  // llama with attention_bias
  bool mlp_bias = false;
  bool qk_norm = false;             // qwen3
  float initializer_range = 0.02f;  // standard deviation of a random initialisation
  std::vector<int32_t> eos_token_ids;

  int64_t q_width() const { return heads * head_dim; }
  int64_t kv_width() const { return kv_heads * head_dim; }
};

// Parses the text of a config.json; `source` names it in errors. Reads both spellings of RoPE
// (rope_theta with rope_scaling, and rope_parameters) and refuses a config with neither.
// INVALID_ARGUMENT, reason INVALID_MODEL_CONFIG, for a malformed or contradictory file;
// UNIMPLEMENTED, naming the field, with reason UNSUPPORTED_ARCHITECTURE for an architecture and
// UNSUPPORTED_MODEL_CONFIG for a field that changes the mathematics and is not supported.
absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& json, const std::string& source);

// Adds the eos_token_id (a number or a list) of a generation_config.json to `config`, without
// duplicates; its other fields are defaults for sampling and are not read. INVALID_ARGUMENT,
// reason INVALID_MODEL_CONFIG, for a malformed file or an id outside the vocabulary.
absl::Status MergeGenerationConfig(const std::string& json, const std::string& source,
                                   ModelConfig* config);

}  // namespace halfstep
