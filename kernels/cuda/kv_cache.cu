// SPDX-License-Identifier: Apache-2.0
// Stores keys and values into cache blocks [kv_heads][kKvBlockTokens][head_dim rounded up to 16]:
// the rows of one head of a block are contiguous, so attention reads a page as one run of bytes, 16
// at a time whatever head_dim is.
#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_access.h"

namespace halfstep::cuda {
namespace {

constexpr int kThreads = 128;

template <class Bits>
struct CacheWrite {
  Pointer<const Bits> k;
  Pointer<const Bits> v;
  Pointer<const int32_t> slots;
  Pointer<Bits> keys;
  Pointer<Bits> values;
  int64_t tokens;
  int kv_heads;
  int head_dim;
  int row_width;
};

// A thread moves 16 bytes of a key and of the value beside it; behind head_dim it stores zeros.
// `Bits` is an unsigned integer of the element's size: elements are moved, never converted.
template <bool aligned, class Bits>
HALFSTEP_KERNEL void WriteRows(CacheWrite<Bits> a) {
  constexpr int kCount = Pack<Bits>::kCount;
  constexpr int kTokens = static_cast<int>(kKvBlockTokens);
  const int packs = a.row_width / kCount;
  const int64_t item = int64_t{BlockX()} * kThreads + ThreadIndex();
  const int64_t row = item / packs;  // token * kv_heads + head
  if (row >= a.tokens * a.kv_heads) return;
  const int column = static_cast<int>(item % packs) * kCount;
  const int head = static_cast<int>(row % a.kv_heads);
  const int slot = a.slots[row / a.kv_heads];
  const int64_t to =
      ((int64_t{slot / kTokens} * a.kv_heads + head) * kTokens + slot % kTokens) * a.row_width +
      column;
  const int64_t from = row * a.head_dim + column;
  const auto move = [&](Pointer<const Bits> source, Pointer<Bits> target) {
    Pack<Bits> pack{};
    if constexpr (aligned) {
      if (column < a.head_dim) pack = LoadPack(source, from);
    } else {
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if (column + j < a.head_dim) pack.values[j] = source[from + j];
      }
    }
    StorePack(target, to, pack);
  };
  move(a.k, a.keys);
  move(a.v, a.values);
}

template <class Bits>
Pointer<const Bits> BitsOf(ConstTensor x) {
  if (x.empty()) return {};
  HALFSTEP_CHECK(x.device().type == DeviceType::kCuda);
  return Pointer<const Bits>(static_cast<const Bits*>(x.data()),
                             static_cast<int64_t>(x.bytes() / sizeof(Bits)));
}
template <class Bits>
Pointer<Bits> MutableBitsOf(Tensor x) {
  if (x.empty()) return {};
  HALFSTEP_CHECK(x.device().type == DeviceType::kCuda);
  return Pointer<Bits>(static_cast<Bits*>(x.data()),
                       static_cast<int64_t>(x.bytes() / sizeof(Bits)));
}

template <class Bits>
void WriteOf(const ExecContext& ctx, ConstTensor k, ConstTensor v, ConstTensor slots,
             const KvCacheLayer& cache) {
  const CacheWrite<Bits> write{BitsOf<Bits>(k),
                               BitsOf<Bits>(v),
                               PointerTo<const int32_t>(slots),
                               MutableBitsOf<Bits>(cache.keys),
                               MutableBitsOf<Bits>(cache.values),
                               k.dim(0),
                               static_cast<int>(cache.kv_heads),
                               static_cast<int>(cache.head_dim),
                               static_cast<int>(CacheRowWidth(cache.head_dim))};
  const bool aligned =
      RowsAreAligned(write.k, cache.head_dim) && RowsAreAligned(write.v, cache.head_dim);
  const int64_t items = write.tokens * cache.kv_heads * (write.row_width / Pack<Bits>::kCount);
  Launch(ctx, {"WriteKvCache", CeilDivide(items, kThreads), 1, kThreads},
         aligned ? WriteRows<true, Bits> : WriteRows<false, Bits>, write);
}

}  // namespace

void WriteKvCache(const ExecContext& ctx, ConstTensor k, ConstTensor v, ConstTensor slots,
                  const KvCacheLayer& cache) {
  if (SizeOf(cache.dtype) == 2) {
    WriteOf<uint16_t>(ctx, k, v, slots, cache);
  } else {
    WriteOf<uint32_t>(ctx, k, v, slots, cache);
  }
}

}  // namespace halfstep::cuda
