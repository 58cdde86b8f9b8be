// SPDX-License-Identifier: Apache-2.0
// Reading config.json. Every field is used, known to leave the mathematics alone, checked to hold
// the one value that is supported, or refused by name.
#include "common/model/model_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/error_reason.h"
#include "common/base/json.h"
#include "nlohmann/json.hpp"

namespace halfstep {
namespace {

using Json = nlohmann::json;

// Bounds that no real model reaches; with them no product of sizes overflows 63 bits.
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxWidth = int64_t{1} << 18;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxPositions = int64_t{1} << 30;

// Fields that say nothing about the mathematics of a forward pass: bookkeeping, storage, token
// roles, and the sampling defaults that old files carry.
constexpr const char* kInertFields[] = {"architectures",
                                        "auto_map",
                                        "bad_words_ids",
                                        "begin_suppress_tokens",
                                        "bos_token_id",
                                        "chunk_size_feed_forward",
                                        "cross_attention_hidden_size",
                                        "decoder_start_token_id",
                                        "diversity_penalty",
                                        "do_sample",
                                        "dtype",
                                        "early_stopping",
                                        "encoder_no_repeat_ngram_size",
                                        "exponential_decay_length_penalty",
                                        "finetuning_task",
                                        "forced_bos_token_id",
                                        "forced_eos_token_id",
                                        "id2label",
                                        "is_decoder",
                                        "is_encoder_decoder",
                                        "label2id",
                                        "length_penalty",
                                        "max_length",
                                        "max_window_layers",
                                        "min_length",
                                        "model_type",
                                        "name_or_path",
                                        "no_repeat_ngram_size",
                                        "num_beam_groups",
                                        "num_beams",
                                        "num_return_sequences",
                                        "output_attentions",
                                        "output_hidden_states",
                                        "output_scores",
                                        "pad_token_id",
                                        "prefix",
                                        "pretraining_tp",
                                        "problem_type",
                                        "remove_invalid_values",
                                        "repetition_penalty",
                                        "return_dict",
                                        "return_dict_in_generate",
                                        "sep_token_id",
                                        "suppress_tokens",
                                        "task_specific_params",
                                        "temperature",
                                        "tf_legacy_loss",
                                        "tokenizer_class",
                                        "top_k",
                                        "top_p",
                                        "torch_dtype",
                                        "torchscript",
                                        "transformers_version",
                                        "typical_p",
                                        "unsloth_fixed",
                                        "unsloth_version",
                                        "use_bfloat16",
                                        "use_cache"};

constexpr char kUnsupportedArchitecture[] = "UNSUPPORTED_ARCHITECTURE";

absl::Status Malformed(const std::string& source, const std::string& what) {
  return Error(absl::StatusCode::kInvalidArgument, "INVALID_MODEL_CONFIG",
               absl::StrCat(source, ": ", what));
}

// Reads the fields of one JSON object, remembers which, and keeps the first error.
class FieldReader {
 public:
  FieldReader(const Json& object, std::string source, std::string prefix = "")
      : object_(object), source_(std::move(source)), prefix_(std::move(prefix)) {}

  // Null counts as absent, as it does in Hugging Face configurations.
  const Json* Find(const std::string& name) {
    seen_.insert(name);
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  int64_t Integer(const std::string& name, int64_t low, int64_t high,
                  std::optional<int64_t> fallback = std::nullopt) {
    const Json* value = Find(name);
    if (value == nullptr) {
      if (!fallback) Invalid(name, "is missing");
      return fallback.value_or(low);
    }
    if (!value->is_number_integer()) {
      Invalid(name, absl::StrCat("must be an integer, found ", Show(*value)));
      return low;
    }
    const bool huge = value->is_number_unsigned() && value->get<uint64_t>() > uint64_t{1} << 62;
    const int64_t number = huge ? high + 1 : value->get<int64_t>();
    if (number < low || number > high) {
      Invalid(name, absl::StrCat("must be from ", low, " to ", high, ", found ", Show(*value)));
      return low;
    }
    return number;
  }

  double Number(const std::string& name, double above, std::optional<double> fallback) {
    const Json* value = Find(name);
    if (value == nullptr) {
      if (!fallback) Invalid(name, "is missing");
      return fallback.value_or(1.0);
    }
    const double number = value->is_number() ? value->get<double>() : std::nan("");
    if (!std::isfinite(number) || number <= above) {
      Invalid(name,
              absl::StrCat("must be a finite number above ", above, ", found ", Show(*value)));
      return 1.0;
    }
    return number;
  }

  bool Boolean(const std::string& name, bool fallback) {
    const Json* value = Find(name);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) {
      Invalid(name, absl::StrCat("must be true or false, found ", Show(*value)));
      return fallback;
    }
    return value->get<bool>();
  }

  // Refuses a field that is present and holds none of the values that leave the mathematics alone.
  void Require(const std::string& name, std::initializer_list<Json> supported,
               const std::string& reason) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (std::find(supported.begin(), supported.end(), *value) != supported.end()) return;
    Unsupported(name, absl::StrCat("= ", Show(*value), " is not supported: ", reason));
  }

  void RefuseUnknown() {
    for (const auto& [name, value] : object_.items()) {
      if (value.is_null() || name.empty() || name[0] == '_' || seen_.count(name)) continue;
      Unsupported(name,
                  "is not known, so it may change the mathematics; remove it from the file if it "
                  "does not");
    }
  }

  void MarkInert(const char* name) { seen_.insert(name); }
  void Invalid(const std::string& name, const std::string& what) {
    Keep(Malformed(source_, absl::StrCat(prefix_, name, " ", what)));
  }
  void Unsupported(const std::string& name, const std::string& what,
                   const std::string& reason = "UNSUPPORTED_MODEL_CONFIG") {
    Keep(Error(absl::StatusCode::kUnimplemented, reason,
               absl::StrCat(source_, ": ", prefix_, name, " ", what)));
  }
  void Keep(absl::Status status) { status_.Update(status); }
  const absl::Status& status() const { return status_; }

  static std::string Show(const Json& value) {
    std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    if (text.size() > 80) text = text.substr(0, 77) + "...";
    return text;
  }

 private:
  const Json& object_;
  std::string source_;
  std::string prefix_;
  std::set<std::string> seen_;
  absl::Status status_;
};

std::optional<Architecture> ParseArchitecture(const std::string& model_type) {
  if (model_type == "llama") return Architecture::kLlama;
  if (model_type == "qwen2") return Architecture::kQwen2;
  if (model_type == "qwen3") return Architecture::kQwen3;
  return std::nullopt;
}

Architecture ReadArchitecture(FieldReader* in) {
  const Json* type = in->Find("model_type");
  if (type == nullptr || !type->is_string()) {
    in->Invalid("model_type", type ? "must be a string" : "is missing");
    return Architecture::kLlama;
  }
  const auto architecture = ParseArchitecture(type->get<std::string>());
  if (!architecture) {
    in->Unsupported("model_type",
                    absl::StrCat("= ", FieldReader::Show(*type),
                                 " is not supported; supported are llama, qwen2 and "
                                 "qwen3 (dense)"),
                    kUnsupportedArchitecture);
    return Architecture::kLlama;
  }
  constexpr std::array<const char*, 3> kClasses = {"LlamaForCausalLM", "Qwen2ForCausalLM",
                                                   "Qwen3ForCausalLM"};
  if (const Json* names = in->Find("architectures"); names != nullptr && names->is_array()) {
    for (const Json& name : *names) {
      if (name != kClasses[static_cast<size_t>(*architecture)]) {
        in->Unsupported("architectures",
                        absl::StrCat("names ", FieldReader::Show(name), "; supported for ",
                                     type->get<std::string>(), " is ",
                                     kClasses[static_cast<size_t>(*architecture)]),
                        kUnsupportedArchitecture);
      }
    }
  }
  return *architecture;
}

// The RoPE object of both spellings, or the frequency base alone.
void ReadRope(const std::string& source, FieldReader* in, RopeParameters* rope) {
  const Json* theta = in->Find("rope_theta");
  const Json* scaling = in->Find("rope_scaling");
  const Json* parameters = in->Find("rope_parameters");
  if (theta == nullptr && parameters == nullptr &&
      (scaling == nullptr || !scaling->is_object() || !scaling->contains("rope_theta"))) {
    in->Invalid(
        "rope_theta",
        "is missing and there is no rope_parameters: give the base of the rotary frequencies");
    return;
  }
  if (theta != nullptr) rope->theta = in->Number("rope_theta", 0.0, std::nullopt);
  if (scaling != nullptr && parameters != nullptr && *scaling != *parameters) {
    in->Invalid("rope_scaling", "and rope_parameters are both given and differ");
    return;
  }
  const char* name = parameters != nullptr ? "rope_parameters" : "rope_scaling";
  const Json* object = parameters != nullptr ? parameters : scaling;
  if (object == nullptr) return;
  if (!object->is_object()) {
    in->Invalid(name, absl::StrCat("must be an object, found ", FieldReader::Show(*object)));
    return;
  }

  FieldReader fields(*object, source, absl::StrCat(name, "."));
  if (fields.Find("rope_theta") != nullptr) {
    const double inner = fields.Number("rope_theta", 0.0, std::nullopt);
    if (theta != nullptr && inner != rope->theta) {
      fields.Invalid("rope_theta", absl::StrCat("= ", inner, " contradicts rope_theta = ",
                                                rope->theta, " of the same file"));
    }
    rope->theta = inner;
  } else if (theta == nullptr) {
    fields.Invalid("rope_theta", "is missing");
  }
  const Json* new_type = fields.Find("rope_type");
  const Json* old_type = fields.Find("type");
  const Json* type = new_type != nullptr ? new_type : old_type;
  if (type == nullptr) {
    fields.Invalid("rope_type", "is missing");
  } else if (*type == "llama3") {
    Llama3RopeScaling llama3;
    llama3.factor = fields.Number("factor", 0.0, std::nullopt);
    llama3.low_freq_factor = fields.Number("low_freq_factor", 0.0, std::nullopt);
    llama3.high_freq_factor = fields.Number("high_freq_factor", 0.0, std::nullopt);
    llama3.original_max_positions =
        fields.Integer("original_max_position_embeddings", 1, kMaxPositions);
    if (fields.status().ok() && llama3.high_freq_factor <= llama3.low_freq_factor) {
      fields.Invalid("high_freq_factor", "must be above low_freq_factor");
    }
    rope->llama3 = llama3;
  } else if (*type != "default") {
    fields.Unsupported("rope_type", absl::StrCat("= ", FieldReader::Show(*type),
                                                 " is not supported; supported are \"default\" and "
                                                 "\"llama3\""));
  }
  fields.Require("partial_rotary_factor", {1.0}, "every element of a head is rotated");
  fields.RefuseUnknown();
  in->Keep(fields.status());
}

// A number or a list of numbers, added to `ids` without duplicates.
void ReadEosTokens(FieldReader* in, int64_t vocab_size, std::vector<int32_t>* ids) {
  const Json* value = in->Find("eos_token_id");
  if (value == nullptr) return;
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab_size)) {
      in->Invalid("eos_token_id", absl::StrCat("must hold token ids below vocab_size = ",
                                               vocab_size, ", found ", FieldReader::Show(id)));
      return;
    }
    const auto token = id.get<int32_t>();
    if (std::find(ids->begin(), ids->end(), token) == ids->end()) ids->push_back(token);
  }
}

void ReadSizes(FieldReader* in, ModelConfig* config) {
  const bool llama = config->architecture == Architecture::kLlama;
  config->vocab_size = in->Integer("vocab_size", 1, kMaxVocab);
  config->hidden_size = in->Integer("hidden_size", 1, kMaxWidth);
  config->intermediate_size = in->Integer("intermediate_size", 1, kMaxWidth);
  config->layers = in->Integer("num_hidden_layers", 1, kMaxLayers);
  config->heads = in->Integer("num_attention_heads", 1, kMaxWidth);
  config->kv_heads = in->Integer("num_key_value_heads", 1, kMaxWidth,
                                 llama ? std::optional<int64_t>(config->heads) : std::nullopt);
  config->max_positions = in->Integer("max_position_embeddings", 1, kMaxPositions);
  // The default of Hugging Face's Qwen3 is a constant, that of the others follows from the width.
  const bool derived = config->architecture != Architecture::kQwen3;
  if (derived && in->Find("head_dim") == nullptr && config->hidden_size % config->heads != 0) {
    in->Invalid("hidden_size", absl::StrCat("= ", config->hidden_size,
                                            " is not a multiple of num_attention_heads = ",
                                            config->heads, " and head_dim is not given"));
  }
  config->head_dim =
      in->Integer("head_dim", 1, kMaxWidth,
                  derived ? std::max<int64_t>(1, config->hidden_size / config->heads) : 128);
  if (!in->status().ok()) return;
  if (config->head_dim % 2 != 0) {
    in->Invalid("head_dim", absl::StrCat("= ", config->head_dim, " is odd; RoPE needs pairs"));
  }
  if (config->heads % config->kv_heads != 0) {
    in->Invalid("num_attention_heads",
                absl::StrCat("= ", config->heads,
                             " is not a multiple of num_key_value_heads = ", config->kv_heads));
  }
  if (config->heads > kMaxWidth / config->head_dim) {
    in->Invalid("head_dim", absl::StrCat("times num_attention_heads exceeds ", kMaxWidth));
  }
}

void ReadBiases(FieldReader* in, ModelConfig* config) {
  switch (config->architecture) {
    case Architecture::kLlama:
      config->qkv_bias = config->output_bias = in->Boolean("attention_bias", false);
      config->mlp_bias = in->Boolean("mlp_bias", false);
      break;
    case Architecture::kQwen2:
      config->qkv_bias = true;
      break;
    case Architecture::kQwen3:
      config->qkv_bias = config->output_bias = in->Boolean("attention_bias", false);
      config->qk_norm = true;
      break;
  }
}

// Fields whose other values would need code that does not exist.
void RefuseOtherMathematics(Architecture architecture, FieldReader* in) {
  in->Require("hidden_act", {"silu", "swish"}, "the MLP is SwiGLU");
  in->Require("use_sliding_window", {false}, "attention is over the whole sequence");
  if (architecture == Architecture::kLlama) {
    in->Require("sliding_window", {}, "attention is over the whole sequence");
  } else {
    in->MarkInert("sliding_window");  // without effect while use_sliding_window is false
  }
  if (const Json* types = in->Find("layer_types"); types != nullptr) {
    const bool full =
        types->is_array() && std::all_of(types->begin(), types->end(),
                                         [](const Json& t) { return t == "full_attention"; });
    if (!full) in->Unsupported("layer_types", "may only hold \"full_attention\"");
  }
  in->Require("attention_dropout", {0, 0.0}, "there is no dropout");
  in->Require("partial_rotary_factor", {1, 1.0}, "every element of a head is rotated");
  in->Require("quantization_config", {}, "weights are fp16, bf16 or fp32");
  in->Require("add_cross_attention", {false}, "models are decoders");
  in->Require("tie_encoder_decoder", {false}, "models are decoders");
  in->Require("pruned_heads", {Json::object()}, "heads are not pruned");
}

absl::StatusOr<Json> ParseObject(const std::string& text, const std::string& source) {
  absl::StatusOr<Json> json = ParseJson(text);
  if (!json.ok()) return Malformed(source, std::string(json.status().message()));
  if (!json->is_object()) {
    return Malformed(source, "must be a JSON object");
  }
  return json;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& json, const std::string& source) {
  const absl::StatusOr<Json> object = ParseObject(json, source);
  if (!object.ok()) return object.status();
  FieldReader in(*object, source);
  for (const char* name : kInertFields) in.MarkInert(name);

  ModelConfig config;
  config.architecture = ReadArchitecture(&in);
  if (!in.status().ok()) return in.status();
  RefuseOtherMathematics(config.architecture, &in);
  ReadSizes(&in, &config);
  ReadBiases(&in, &config);
  ReadRope(source, &in, &config.rope);
  config.rms_norm_epsilon = static_cast<float>(in.Number("rms_norm_eps", 0.0, 1e-6));
  config.initializer_range = static_cast<float>(in.Number("initializer_range", 0.0, 0.02));
  config.tie_word_embeddings = in.Boolean("tie_word_embeddings", false);
  ReadEosTokens(&in, config.vocab_size, &config.eos_token_ids);
  in.RefuseUnknown();
  if (!in.status().ok()) return in.status();
  return config;
}

absl::Status MergeGenerationConfig(const std::string& json, const std::string& source,
                                   ModelConfig* config) {
  const absl::StatusOr<Json> object = ParseObject(json, source);
  if (!object.ok()) return object.status();
  FieldReader in(*object, source);
  ReadEosTokens(&in, config->vocab_size, &config->eos_token_ids);
  return in.status();
}

}  // namespace halfstep
