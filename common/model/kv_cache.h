// SPDX-License-Identifier: Apache-2.0
// KvCache: the key-value blocks of every layer. Which block belongs to whom is the scheduler's
// business.
#pragma once

#include <vector>

#include "common/model/model_config.h"
#include "kernels/buffer.h"
#include "kernels/ops/attention.h"

namespace halfstep {

class KvCache {
 public:
  // Allocates `blocks` blocks of kKvBlockTokens tokens for each layer.
  KvCache(const ModelConfig& config, DType dtype, int64_t blocks, Device device = kCpuDevice);

  // Bytes that one block takes over all layers, keys and values.
  static size_t BytesPerBlock(const ModelConfig& config, DType dtype);

  int64_t blocks() const { return blocks_; }
  const KvCacheLayer& layer(int64_t index) const { return layers_[index]; }

 private:
  int64_t blocks_;
  Buffer buffer_;
  std::vector<KvCacheLayer> layers_;
};

}  // namespace halfstep
