// SPDX-License-Identifier: Apache-2.0
// One allocation for the keys and values of every layer.
#include "common/model/kv_cache.h"

namespace halfstep {

KvCache::KvCache(const ModelConfig& config, DType dtype, int64_t blocks, Device device)
    : blocks_(blocks),
      buffer_("kv_cache", static_cast<size_t>(blocks) * BytesPerBlock(config, dtype), device) {
  const auto block_bytes =
      static_cast<int64_t>(KvBlockBytes(dtype, config.kv_heads, config.head_dim));
  size_t offset = 0;
  const auto take = [&] {
    const Tensor view = buffer_.View(DType::kUInt8, {blocks, block_bytes}, offset);
    offset += view.bytes();
    return view;
  };
  layers_.reserve(config.layers);
  for (int64_t i = 0; i < config.layers; ++i) {
    KvCacheLayer layer;
    layer.keys = take();
    layer.values = take();
    layer.dtype = dtype;
    layer.kv_heads = config.kv_heads;
    layer.head_dim = config.head_dim;
    layers_.push_back(layer);
  }
}

size_t KvCache::BytesPerBlock(const ModelConfig& config, DType dtype) {
  return 2 * static_cast<size_t>(config.layers) *
         KvBlockBytes(dtype, config.kv_heads, config.head_dim);
}

}  // namespace halfstep
