// SPDX-License-Identifier: Apache-2.0
// What every attention kernel needs to know of its work: which rows of which sequence a block
// takes, and where the rows of queries, keys and values are. A row of the queries is (token, head
// of the group) of one key-value head, token by token, so that all heads of a group share what is
// read of the keys.
#pragma once

#include <cstdint>

#include "kernels/cuda/device_code.h"
#include "kernels/ops/attention.h"

namespace halfstep::cuda {

// What fits the registers of the kernels.
inline constexpr int64_t kMaxHeadDim = 256;

inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr float kLogOf2 = 0.693147180559945309f;

// `height` rows of one sequence from first_row on, of which those below `rows` are there.
struct RowTile {
  int sequence;
  int begin;   // its first token
  int tokens;  // of the sequence
  int rows;    // of the sequence: tokens * group
  int first_row;

  HALFSTEP_DEVICE bool empty() const { return first_row >= rows; }
  // The last row of a tile of this height that is there.
  HALFSTEP_DEVICE int LastRow(int height) const {
    return first_row + height < rows ? first_row + height - 1 : rows - 1;
  }
};

// Blocks are divided among sequences whose lengths only the device knows: sequence s has those from
// start[s] * group / height + s on, which are as many as its tiles or one more.
constexpr int64_t TileSlots(int64_t tokens, int64_t sequences, int64_t group, int64_t height) {
  return tokens * group / height + sequences;
}

// The tile of a slot below TileSlots; start: [sequences + 1]. Called by whole warps.
HALFSTEP_DEVICE RowTile FindTile(Pointer<const int32_t> start, int sequences, int group, int height,
                                 int slot) {
  int begun = 0;  // sequences whose first slot is not behind this one
  for (int s = Lane(); s < sequences; s += kWarpSize) {
    begun += start[s] * group / height + s <= slot ? 1 : 0;
  }
  const int s = WarpSum(begun) - 1;
  RowTile tile;
  tile.sequence = s;
  tile.begin = start[s];
  tile.tokens = start[s + 1] - tile.begin;
  tile.rows = tile.tokens * group;
  tile.first_row = (slot - (tile.begin * group / height + s)) * height;
  return tile;
}

// Row-major rows [tokens, heads, head_dim] of queries, outputs and their gradients.
struct QueryRows {
  int heads;
  int group;
  int head_dim;

  // Offset of row `row` of the sequence that begins at token `begin`.
  HALFSTEP_DEVICE int64_t Offset(int begin, int kv_head, int row) const {
    const int64_t token = begin + row / group;
    return (token * heads + kv_head * group + row % group) * head_dim;
  }
};

// The keys and values of packed sequences, [tokens, kv_heads, head_dim], or those of a paged cache,
// whose blocks are [kv_heads][kKvBlockTokens][head_dim rounded up to 16], the rest of a row zeros.
template <class T>
struct KeyValues {
  Pointer<const T> keys;
  Pointer<const T> values;
  Pointer<const int32_t> tables;  // [sequences, max_blocks]; empty where packed
  int max_blocks;
  int kv_heads;
  int head_dim;
  int row_width;  // head_dim, or that of a cache

  // Which page of the cache holds the positions from kKvBlockTokens * `block` on. Blocks from
  // `blocks` on are not there.
  HALFSTEP_DEVICE int Page(int sequence, int block, int blocks) const {
    if (tables.empty() || block >= blocks) return 0;
    return tables[int64_t{sequence} * max_blocks + block];
  }
  // Offset of the row of a position, which is in `page` or in the sequence from token `begin` on.
  HALFSTEP_DEVICE int64_t Offset(int page, int begin, int kv_head, int position) const {
    constexpr int kTokens = static_cast<int>(kKvBlockTokens);
    const int64_t row = tables.empty()
                            ? (int64_t{begin} + position) * kv_heads + kv_head
                            : (int64_t{page} * kv_heads + kv_head) * kTokens + position % kTokens;
    return row * row_width;
  }
};

// Elements of a row of the cache.
constexpr int64_t CacheRowWidth(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

}  // namespace halfstep::cuda
