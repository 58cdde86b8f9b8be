// SPDX-License-Identifier: Apache-2.0
// Model folders as Hugging Face lays them out: config.json, generation_config.json, tokenizer files
// and safetensors.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/atomic_directory.h"
#include "common/model/model_config.h"
#include "common/model/parameter_buffer.h"

namespace halfstep {

// A folder's configuration; no weights are read.
struct HuggingFaceModel {
  std::string directory;
  std::string root;         // where the folder's links may lead
  std::string config_json;  // the text of config.json
  ModelConfig config;       // with the eos tokens of generation_config.json, when there is one
  std::shared_ptr<const ParameterLayout> layout;
  bool has_weights = false;  // whether the folder holds safetensors
};

// NOT_FOUND when there is no config.json; otherwise the errors of ParseModelConfig. Files of the
// folder may be links that stay below `root`, as in a cache of Hugging Face; an empty root allows
// all. PERMISSION_DENIED (reason PATH_OUTSIDE_ROOT) for others, here and when weights are read.
absl::StatusOr<HuggingFaceModel> OpenHuggingFaceModel(const std::string& directory,
                                                      const std::string& root = "");

// Looks at everything about the folder's safetensors (F32, F16 or BF16) but the values. Errors are
// those of SafetensorsFolder::Open and INVALID_ARGUMENT, reason WEIGHTS_CONFIG_MISMATCH, naming
// tensor, file, expected and found, for a tensor that is missing, unexpected, of another shape or
// dtype. Precomputed rotary frequencies are ignored; a tied model may repeat its embedding as
// lm_head.weight.
absl::Status CheckHuggingFaceWeights(const HuggingFaceModel& model);

// Reads every parameter, whose layout is the model's, converting to the buffer's dtype. Errors are
// those of CheckHuggingFaceWeights and INVALID_ARGUMENT, naming tensor and file, with reason
// NON_FINITE_WEIGHTS for a tensor that holds NaN or Inf, and WEIGHTS_OUT_OF_RANGE for values that
// exceed fp16 when that is the buffer's dtype. After an error the buffer's contents are undefined.
absl::Status LoadHuggingFaceWeights(const HuggingFaceModel& model, ParameterBuffer* parameters);

struct SaveHuggingFaceOptions {
  std::string base_directory;  // where config.json, tokenizer and the other small files come from
  DType dtype = DType::kFloat16;
  uint64_t shard_bytes = 5'000'000'000;
  std::string root = "";  // where links of the base folder may lead; empty: anywhere
};

// Adds a whole model folder to `out`, below `prefix` ("" or a path that ends in '/'): safetensors
// in `options.dtype`, config.json with its dtype field set to match, and the base folder's other
// files as they are. INVALID_ARGUMENT when a parameter does not fit into the dtype.
absl::Status SaveHuggingFaceModel(const ParameterBuffer& parameters,
                                  const SaveHuggingFaceOptions& options, const std::string& prefix,
                                  AtomicDirectoryWriter* out);

}  // namespace halfstep
