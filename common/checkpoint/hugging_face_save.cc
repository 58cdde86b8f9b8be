// SPDX-License-Identifier: Apache-2.0
// From a ParameterBuffer to a Hugging Face folder.
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/hugging_face.h"
#include "common/checkpoint/safetensors_writer.h"
#include "common/checkpoint/weight_conversion.h"
#include "kernels/host_copy.h"
#include "nlohmann/json.hpp"

namespace halfstep {
namespace {

constexpr size_t kMaxCopiedBytes = size_t{256} << 20;

// What a model folder holds beside config.json and weights; copied when there.
constexpr const char* kCopiedFiles[] = {"generation_config.json",
                                        "tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "tokenizer.model",
                                        "chat_template.jinja"};

const char* TorchName(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    default:
      return "float32";
  }
}

// config.json with its dtype field, in whichever spelling it has, naming `dtype`.
absl::StatusOr<std::string> ConfigWithDType(const std::string& path, DType dtype) {
  HALFSTEP_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxCopiedBytes));
  absl::StatusOr<nlohmann::ordered_json> parsed = ParseOrderedJson(text);
  if (!parsed.ok()) return WithContext(parsed.status(), absl::StrCat("'", path, "'"));
  nlohmann::ordered_json& json = *parsed;
  if (!json.is_object()) {
    return Error(absl::StatusCode::kInvalidArgument, "INVALID_MODEL_CONFIG",
                 absl::StrCat("'", path, "' is not a JSON object"));
  }
  json[json.contains("dtype") ? "dtype" : "torch_dtype"] = TorchName(dtype);
  return json.dump(2) + "\n";
}

// One source per Hugging Face tensor. The first value that does not fit is reported through
// `status`.
std::vector<SafetensorsSource> Sources(const ParameterBuffer& parameters, DType dtype,
                                       absl::Status* status) {
  std::vector<SafetensorsSource> sources;
  const auto& specs = parameters.layout().specs();
  for (size_t i = 0; i < specs.size(); ++i) {
    for (const HuggingFaceSlice& slice : specs[i].slices) {
      const ConstTensor rows =
          parameters.view(static_cast<int>(i)).Rows(slice.first_row, slice.rows);
      SafetensorsSource source;
      source.name = slice.name;
      source.dtype = dtype;
      for (int axis = 0; axis < rows.rank(); ++axis) source.shape.push_back(rows.dim(axis));
      source.fill = [rows, dtype, status, name = slice.name](void* out) {
        const ConversionCounts counts =
            ConvertWeights(HostCopy(rows).view().data(), rows.dtype(), rows.elements(), dtype, out);
        const int64_t bad = counts.non_finite + counts.out_of_range;
        if (bad == 0) return;
        status->Update(
            Error(absl::StatusCode::kInvalidArgument, "NON_FINITE_WEIGHTS",
                  absl::StrCat("tensor '", name, "' holds ", bad, " values of ", rows.elements(),
                               " that are not finite in ", Name(dtype))));
      };
      sources.push_back(std::move(source));
    }
  }
  return sources;
}

absl::Status SaveWeights(const ParameterBuffer& parameters, const SaveHuggingFaceOptions& options,
                         const std::string& prefix, AtomicDirectoryWriter* out) {
  absl::Status converted;
  const std::vector<SafetensorsSource> sources = Sources(parameters, options.dtype, &converted);
  const std::vector<size_t> shards = PlanShards(sources, options.shard_bytes);
  auto next = sources.begin();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::vector<SafetensorsSource> shard(next, next + static_cast<int64_t>(shards[i]));
    next += static_cast<int64_t>(shards[i]);
    HALFSTEP_RETURN_IF_ERROR(
        out->AddFile(prefix + ShardName(i, shards.size()), [&](FileWriter* file) {
          absl::Status written = WriteSafetensors(shard, {{"format", "pt"}}, file);
          written.Update(converted);
          return written;
        }));
  }
  if (shards.size() == 1) return absl::OkStatus();
  return out->AddFile(prefix + "model.safetensors.index.json", ShardIndex(sources, shards));
}

}  // namespace

absl::Status SaveHuggingFaceModel(const ParameterBuffer& parameters,
                                  const SaveHuggingFaceOptions& options, const std::string& prefix,
                                  AtomicDirectoryWriter* out) {
  HALFSTEP_RETURN_IF_ERROR(SaveWeights(parameters, options, prefix, out));
  const std::string config_path = options.base_directory + "/config.json";
  HALFSTEP_RETURN_IF_ERROR(CheckUnder(options.root, config_path));
  HALFSTEP_ASSIGN_OR_RETURN(const std::string config, ConfigWithDType(config_path, options.dtype));
  HALFSTEP_RETURN_IF_ERROR(out->AddFile(prefix + "config.json", config));
  for (const char* name : kCopiedFiles) {
    const std::string path = absl::StrCat(options.base_directory, "/", name);
    HALFSTEP_RETURN_IF_ERROR(CheckUnder(options.root, path));
    const auto contents = ReadFile(path, kMaxCopiedBytes);
    if (absl::IsNotFound(contents.status())) continue;
    if (!contents.ok()) return contents.status();
    HALFSTEP_RETURN_IF_ERROR(out->AddFile(absl::StrCat(prefix, name), *contents));
  }
  return absl::OkStatus();
}

}  // namespace halfstep
