// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/safetensors_writer.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "kernels/check.h"
#include "nlohmann/json.hpp"

namespace halfstep {

uint64_t SafetensorsSource::bytes() const {
  uint64_t bytes = SizeOf(dtype);
  for (const int64_t dim : shape) bytes *= static_cast<uint64_t>(dim);
  return bytes;
}

const char* SafetensorsName(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return "F16";
    case DType::kBFloat16:
      return "BF16";
    case DType::kFloat32:
      return "F32";
    case DType::kFloat64:
      return "F64";
    case DType::kInt32:
      return "I32";
    case DType::kInt64:
      return "I64";
    case DType::kUInt8:
      return "U8";
  }
  return "?";
}

absl::Status WriteSafetensors(const std::vector<SafetensorsSource>& tensors,
                              const std::map<std::string, std::string>& metadata, FileWriter* out) {
  auto header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const SafetensorsSource& tensor : tensors) {
    HALFSTEP_CHECK(!header.contains(tensor.name));
    header[tensor.name] = {{"dtype", SafetensorsName(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + tensor.bytes()}}};
    offset += tensor.bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string prefix;
  for (int i = 0; i < 8; ++i) prefix.push_back(static_cast<char>(uint64_t{text.size()} >> 8 * i));
  HALFSTEP_RETURN_IF_ERROR(out->Append(prefix));
  HALFSTEP_RETURN_IF_ERROR(out->Append(text));

  std::vector<char> scratch;
  for (const SafetensorsSource& tensor : tensors) {
    scratch.resize(tensor.bytes());
    tensor.fill(scratch.data());
    HALFSTEP_RETURN_IF_ERROR(out->Append(scratch.data(), scratch.size()));
  }
  return absl::OkStatus();
}

std::vector<size_t> PlanShards(const std::vector<SafetensorsSource>& tensors,
                               uint64_t shard_bytes) {
  std::vector<size_t> shards;
  uint64_t used = 0;
  for (const SafetensorsSource& tensor : tensors) {
    if (shards.empty() || (used > 0 && used + tensor.bytes() > shard_bytes)) {
      shards.push_back(0);
      used = 0;
    }
    ++shards.back();
    used += tensor.bytes();
  }
  return shards;
}

std::string ShardName(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

std::string ShardIndex(const std::vector<SafetensorsSource>& tensors,
                       const std::vector<size_t>& shards) {
  auto map = nlohmann::ordered_json::object();
  uint64_t total = 0;
  size_t next = 0;
  for (size_t shard = 0; shard < shards.size(); ++shard) {
    for (size_t i = 0; i < shards[shard]; ++i, ++next) {
      map[tensors[next].name] = ShardName(shard, shards.size());
      total += tensors[next].bytes();
    }
  }
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  return index.dump(2) + "\n";
}

}  // namespace halfstep
