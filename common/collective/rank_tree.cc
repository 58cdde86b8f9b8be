// SPDX-License-Identifier: Apache-2.0
#include "common/collective/rank_tree.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels/check.h"

namespace halfstep {
namespace {

// Elements of every rank that are reduced at a time: what is read stays in the first-level cache.
constexpr int64_t kBlock = 256;

// What elements of type T are added in.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>, float, T>;

template <class T>
void Load(const T* from, int64_t count, Sum<T>* to) {
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (std::is_same_v<T, Sum<T>>) {
      to[i] = from[i];
    } else {
      to[i] = ToFloat(from[i]);
    }
  }
}

template <class T>
void Store(const Sum<T>* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (std::is_same_v<T, Sum<T>>) {
      to[i] = from[i];
    } else {
      to[i] = FromFloat<T>(from[i]);
    }
  }
}

template <class S>
void Combine(const S* right, int64_t count, ReduceOp op, S* left) {
  if (op == ReduceOp::kSum) {
    for (int64_t i = 0; i < count; ++i) left[i] += right[i];
  } else {
    for (int64_t i = 0; i < count; ++i) left[i] = std::max(left[i], right[i]);
  }
}

template <class T>
void Reduce(const RankShards& input, ReduceOp op, T* out) {
  const int ranks = static_cast<int>(input.shards.size());
  std::vector<Sum<T>> block(static_cast<size_t>(ranks) * kBlock);
  for (int64_t begin = 0; begin < input.count; begin += kBlock) {
    const int64_t count = std::min(kBlock, input.count - begin);
    for (int rank = 0; rank < ranks; ++rank) {
      Load(static_cast<const T*>(input.shards[rank]) + begin, count, &block[rank * kBlock]);
    }
    for (int stride = 1; stride < ranks; stride *= 2) {
      for (int rank = 0; rank + stride < ranks; rank += 2 * stride) {
        Combine(&block[(rank + stride) * kBlock], count, op, &block[rank * kBlock]);
      }
    }
    Store<T>(block.data(), count, out + begin);
  }
}

}  // namespace

void ReduceShards(const RankShards& input, ReduceOp op, void* out) {
  HALFSTEP_CHECK(!input.shards.empty());
  switch (input.dtype) {
    case DType::kFloat16:
      return Reduce(input, op, static_cast<Float16*>(out));
    case DType::kBFloat16:
      return Reduce(input, op, static_cast<BFloat16*>(out));
    case DType::kFloat32:
      return Reduce(input, op, static_cast<float*>(out));
    case DType::kFloat64:
      return Reduce(input, op, static_cast<double*>(out));
    case DType::kInt32:
      return Reduce(input, op, static_cast<int32_t*>(out));
    case DType::kInt64:
      return Reduce(input, op, static_cast<int64_t*>(out));
    case DType::kUInt8:
      break;
  }
  HALFSTEP_CHECK(!"a dtype with a sum");
}

Chunk ChunkOf(int64_t total, int size, int rank) {
  return {total / size * rank + total % size * rank / size,
          total / size * (rank + 1) + total % size * (rank + 1) / size};
}

int64_t LongestChunk(int64_t total, int size) { return total / size + (total % size > 0 ? 1 : 0); }

Chunk SliceOf(const Chunk& chunk, int64_t begin, int64_t slice) {
  return {std::min(chunk.begin + begin, chunk.end),
          std::min(chunk.begin + begin + slice, chunk.end)};
}

}  // namespace halfstep
