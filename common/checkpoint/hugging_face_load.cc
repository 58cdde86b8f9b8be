// SPDX-License-Identifier: Apache-2.0
// From a Hugging Face folder into a ParameterBuffer.
#include <cstring>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/hugging_face.h"
#include "common/checkpoint/safetensors.h"
#include "common/checkpoint/weight_conversion.h"
#include "kernels/buffer.h"
#include "kernels/stream.h"

namespace halfstep {
namespace {

constexpr size_t kMaxConfigBytes = size_t{8} << 20;
constexpr int64_t kChunkElements = int64_t{1} << 20;
constexpr char kMismatch[] = "WEIGHTS_CONFIG_MISMATCH";
constexpr char kHeadName[] = "lm_head.weight";
constexpr char kEmbeddingName[] = "model.embed_tokens.weight";

std::optional<DType> WeightDType(const std::string& name) {
  if (name == "F16") return DType::kFloat16;
  if (name == "BF16") return DType::kBFloat16;
  if (name == "F32") return DType::kFloat32;
  return std::nullopt;
}

absl::Status Refused(const SafetensorsFolder::Location& from, const std::string& reason,
                     const std::string& what) {
  return Error(absl::StatusCode::kInvalidArgument, reason,
               absl::StrCat("tensor '", from.entry->name, "' in '", from.file->path(), "' ", what));
}

absl::Status Mismatch(const SafetensorsFolder::Location& from, const std::string& what) {
  return Refused(from, kMismatch, what);
}

// Whether a tensor is what the config wants for `slice` of `spec`.
absl::Status CheckTensor(const SafetensorsFolder::Location& from, const ParameterSpec& spec,
                         const HuggingFaceSlice& slice) {
  std::vector<int64_t> expected(1, slice.rows);
  for (int axis = 1; axis < spec.shape.rank(); ++axis) expected.push_back(spec.shape[axis]);
  if (from.entry->shape != expected) {
    return Mismatch(
        from, absl::StrCat("has shape [", absl::StrJoin(from.entry->shape, ", "), "], expected [",
                           absl::StrJoin(expected, ", "), "] by config.json"));
  }
  if (!WeightDType(from.entry->dtype)) {
    return Mismatch(from,
                    absl::StrCat("has dtype ", from.entry->dtype, ", expected F16, BF16 or F32"));
  }
  return absl::OkStatus();
}

// Copies a checked tensor into `out`, the rows of a parameter that it fills.
absl::Status LoadTensor(const SafetensorsFolder::Location& from, Tensor out) {
  const std::optional<DType> dtype = WeightDType(from.entry->dtype);
  ConversionCounts total;
  std::vector<char> chunk(std::min(out.elements(), kChunkElements) * SizeOf(*dtype));
  for (int64_t done = 0; done < out.elements(); done += kChunkElements) {
    const int64_t count = std::min(kChunkElements, out.elements() - done);
    HALFSTEP_RETURN_IF_ERROR(
        from.file->Read(*from.entry, done * SizeOf(*dtype), count * SizeOf(*dtype), chunk.data()));
    const ConversionCounts counts =
        ConvertWeights(chunk.data(), *dtype, count, out.dtype(),
                       static_cast<char*>(out.data()) + done * SizeOf(out.dtype()));
    total.non_finite += counts.non_finite;
    total.out_of_range += counts.out_of_range;
  }
  if (total.non_finite > 0) {
    return Refused(
        from, "NON_FINITE_WEIGHTS",
        absl::StrCat("holds ", total.non_finite, " NaN or infinite values of ", out.elements()));
  }
  if (total.out_of_range > 0) {
    return Refused(from, "WEIGHTS_OUT_OF_RANGE",
                   absl::StrCat("holds ", total.out_of_range,
                                " values beyond 65504, the largest of fp16; load it as bf16 or "
                                "fp32"));
  }
  return absl::OkStatus();
}

// A tied model may store its embedding a second time as the head; other bytes would be another
// model.
absl::Status CheckRepeatedHead(const SafetensorsFolder::Location& head,
                               const SafetensorsFolder::Location& embedding) {
  bool equal =
      head.entry->shape == embedding.entry->shape && head.entry->dtype == embedding.entry->dtype;
  constexpr uint64_t kBytes = uint64_t{1} << 20;
  std::vector<char> a(kBytes), b(kBytes);
  for (uint64_t done = 0; equal && done < head.entry->bytes(); done += kBytes) {
    const size_t size = std::min(kBytes, head.entry->bytes() - done);
    HALFSTEP_RETURN_IF_ERROR(head.file->Read(*head.entry, done, size, a.data()));
    HALFSTEP_RETURN_IF_ERROR(embedding.file->Read(*embedding.entry, done, size, b.data()));
    equal = std::memcmp(a.data(), b.data(), size) == 0;
  }
  if (equal) return absl::OkStatus();
  return Mismatch(head, absl::StrCat("differs from ", kEmbeddingName,
                                     " although config.json says tie_word_embeddings"));
}

// Everything about the tensors but their values.
absl::Status CheckTensors(const HuggingFaceModel& model, const SafetensorsFolder& folder) {
  std::set<std::string> used;
  for (const ParameterSpec& spec : model.layout->specs()) {
    for (const HuggingFaceSlice& slice : spec.slices) {
      const auto it = folder.tensors().find(slice.name);
      if (it == folder.tensors().end()) {
        return Error(absl::StatusCode::kInvalidArgument, kMismatch,
                     absl::StrCat("'", model.directory, "' has no tensor '", slice.name,
                                  "', which its config.json needs"));
      }
      HALFSTEP_RETURN_IF_ERROR(CheckTensor(it->second, spec, slice));
      used.insert(slice.name);
    }
  }
  for (const auto& [name, location] : folder.tensors()) {
    if (used.count(name) || absl::EndsWith(name, ".rotary_emb.inv_freq")) continue;
    if (name == kHeadName && model.layout->tied()) {
      HALFSTEP_RETURN_IF_ERROR(CheckRepeatedHead(location, folder.tensors().at(kEmbeddingName)));
      continue;
    }
    return Mismatch(location, "is not expected by config.json");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<HuggingFaceModel> OpenHuggingFaceModel(const std::string& directory,
                                                      const std::string& root) {
  HuggingFaceModel model;
  model.directory = directory;
  model.root = root;
  const std::string config_path = directory + "/config.json";
  HALFSTEP_RETURN_IF_ERROR(CheckUnder(root, config_path));
  HALFSTEP_ASSIGN_OR_RETURN(model.config_json, ReadFile(config_path, kMaxConfigBytes));
  HALFSTEP_ASSIGN_OR_RETURN(model.config, ParseModelConfig(model.config_json, config_path));
  const std::string generation_path = directory + "/generation_config.json";
  HALFSTEP_RETURN_IF_ERROR(CheckUnder(root, generation_path));
  const auto generation = ReadFile(generation_path, kMaxConfigBytes);
  if (generation.ok()) {
    HALFSTEP_RETURN_IF_ERROR(MergeGenerationConfig(*generation, generation_path, &model.config));
  } else if (!absl::IsNotFound(generation.status())) {
    return generation.status();
  }
  model.layout = std::make_shared<const ParameterLayout>(model.config);
  model.has_weights = SafetensorsFolder::Exists(directory);
  return model;
}

absl::Status CheckHuggingFaceWeights(const HuggingFaceModel& model) {
  HALFSTEP_ASSIGN_OR_RETURN(const SafetensorsFolder folder,
                            SafetensorsFolder::Open(model.directory, model.root));
  return CheckTensors(model, folder);
}

absl::Status LoadHuggingFaceWeights(const HuggingFaceModel& model, ParameterBuffer* parameters) {
  HALFSTEP_ASSIGN_OR_RETURN(const SafetensorsFolder folder,
                            SafetensorsFolder::Open(model.directory, model.root));
  HALFSTEP_RETURN_IF_ERROR(CheckTensors(model, folder));
  const auto& specs = parameters->layout().specs();
  for (size_t i = 0; i < specs.size(); ++i) {
    for (const HuggingFaceSlice& slice : specs[i].slices) {
      const auto& source = folder.tensors().at(slice.name);
      const Tensor rows = parameters->view(static_cast<int>(i)).Rows(slice.first_row, slice.rows);
      if (rows.device() == kCpuDevice) {
        HALFSTEP_RETURN_IF_ERROR(LoadTensor(source, rows));
        continue;
      }
      OwnedTensor host("loaded", rows.dtype(), rows.shape());
      HALFSTEP_RETURN_IF_ERROR(LoadTensor(source, host));
      CopyAndWait(host, rows);
    }
  }
  return absl::OkStatus();
}

}  // namespace halfstep
