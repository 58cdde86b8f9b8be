// SPDX-License-Identifier: Apache-2.0
// Writing safetensors: headers padded to 8 bytes, tensors made one at a time, so that a model never
// exists twice in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/checkpoint/file_writer.h"
#include "kernels/dtype.h"

namespace halfstep {

// A tensor to be written. `fill` puts its bytes, row-major and little-endian, at `out`.
struct SafetensorsSource {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  std::function<void(void* out)> fill;

  uint64_t bytes() const;
};

// "F16" for fp16 and so on: the format's name of a dtype.
const char* SafetensorsName(DType dtype);

// Appends a whole file; names must be distinct.
absl::Status WriteSafetensors(const std::vector<SafetensorsSource>& tensors,
                              const std::map<std::string, std::string>& metadata, FileWriter* out);

// Cuts the tensors, in order, into shards of at most `shard_bytes` bytes of data each (a larger
// tensor is a shard of its own): the number of tensors of each shard.
std::vector<size_t> PlanShards(const std::vector<SafetensorsSource>& tensors, uint64_t shard_bytes);

// "model.safetensors" for a single shard, else "model-00002-of-00005.safetensors"; `index` from 0.
std::string ShardName(size_t index, size_t count);

// The text of model.safetensors.index.json.
std::string ShardIndex(const std::vector<SafetensorsSource>& tensors,
                       const std::vector<size_t>& shards);

}  // namespace halfstep
