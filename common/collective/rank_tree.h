// SPDX-License-Identifier: Apache-2.0
// The order in which sums over ranks add, and how a buffer is dealt to ranks.
#pragma once

#include <cstdint>
#include <span>

#include "common/collective/operation.h"
#include "kernels/dtype.h"

namespace halfstep {

// The same `count` elements as each rank has them, in the order of ranks.
struct RankShards {
  std::span<const void* const> shards;
  int64_t count = 0;
  DType dtype = DType::kFloat32;
};

// out[i] = the reduction over ranks r of shards[r][i]. A sum adds in a binary tree over ranks: the
// sum of ranks [a, b) is the sum of its first p plus the sum of the rest, p the largest power of
// two below b - a. So for a power of two of ranks, two neighbours that each hold the sum of their
// halves are what one rank would hold that owns both. FP16 and BF16 are widened to FP32, added
// there and rounded once. `out` may be one of the shards. CHECKs that dtype is not uint8.
void ReduceShards(const RankShards& input, ReduceOp op, void* out);

// Elements [begin, end) of `total` are rank's: the ranks' chunks are contiguous, in order, and
// differ by one element at most.
struct Chunk {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t count() const { return end - begin; }
};
Chunk ChunkOf(int64_t total, int size, int rank);
// Elements of the longest chunk.
int64_t LongestChunk(int64_t total, int size);
// Elements [begin, begin + slice) of a chunk, as far as it goes.
Chunk SliceOf(const Chunk& chunk, int64_t begin, int64_t slice);

}  // namespace halfstep
