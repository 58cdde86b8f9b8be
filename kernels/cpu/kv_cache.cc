// SPDX-License-Identifier: Apache-2.0
// Stores keys and values into cache blocks: per key-value head, keys [head_dim][32] and values
// [32][padded head_dim], both in padded head_dim * 32 elements.
#include <algorithm>
#include <cstring>

#include "kernels/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/parallel.h"

namespace halfstep::cpu {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kGrainElements = 16384;

struct Geometry {
  int64_t kv_heads;
  int64_t head_dim;
  int64_t padded;
};

// `Bits` is an unsigned integer of the element's size: elements are moved, never converted.
template <class Bits>
void StoreToken(const Geometry& g, const Bits* k, const Bits* v, int64_t slot, Bits* keys,
                Bits* values) {
  const int64_t head_block = kKvBlockTokens * g.padded;
  const int64_t block = slot / kKvBlockTokens;
  const int64_t offset = slot % kKvBlockTokens;
  for (int64_t h = 0; h < g.kv_heads; ++h, k += g.head_dim, v += g.head_dim) {
    Bits* const key = keys + (block * g.kv_heads + h) * head_block + offset;
    for (int64_t d = 0; d < g.head_dim; ++d) key[d * kKvBlockTokens] = k[d];
    Bits* const value = values + (block * g.kv_heads + h) * head_block + offset * g.padded;
    std::copy_n(v, g.head_dim, value);
    // Read with the last vector, though never stored: zeros cost nothing, subnormals would.
    std::fill(value + g.head_dim, value + g.padded, Bits{0});
  }
}

template <class Bits>
void Write(const ExecContext& ctx, ConstTensor k, ConstTensor v, ConstTensor slots,
           const KvCacheLayer& cache) {
  const Geometry geometry{cache.kv_heads, cache.head_dim,
                          (cache.head_dim + kLanes - 1) / kLanes * kLanes};
  const int64_t width = cache.kv_heads * cache.head_dim;
  const int32_t* slot = slots.as<int32_t>();
  const int64_t slot_count = cache.keys.dim(0) * kKvBlockTokens;
  const Bits* from_k = static_cast<const Bits*>(k.data());
  const Bits* from_v = static_cast<const Bits*>(v.data());
  Bits* keys = static_cast<Bits*>(cache.keys.data());
  Bits* values = static_cast<Bits*>(cache.values.data());
  ParallelRanges(ctx, k.dim(0), kGrainElements / std::max<int64_t>(width, 1),
                 [=, &geometry](int64_t begin, int64_t end, int) {
                   for (int64_t t = begin; t < end; ++t) {
                     HALFSTEP_CHECK_GE(slot[t], 0);
                     HALFSTEP_CHECK_LT(slot[t], slot_count);
                     StoreToken(geometry, from_k + t * width, from_v + t * width, slot[t], keys,
                                values);
                   }
                 });
}

}  // namespace

void WriteKvCache(const ExecContext& ctx, ConstTensor k, ConstTensor v, ConstTensor slots,
                  const KvCacheLayer& cache) {
  if (SizeOf(cache.dtype) == 2) {
    Write<uint16_t>(ctx, k, v, slots, cache);
  } else {
    Write<uint32_t>(ctx, k, v, slots, cache);
  }
}

}  // namespace halfstep::cpu
