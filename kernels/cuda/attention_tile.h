// SPDX-License-Identifier: Apache-2.0
// Tiles of 16-bit rows in shared memory and the two matrix products that attention consists of, for
// forward and backward: products of rows with rows (scores) and sums of rows with weights.
//
// A warp holds results as the matrix instruction does: 16 rows, lane l elements (row l / 4 + 8 h,
// column 8 j + 2 (l % 4) + e) in x[j][2 h + e].
#pragma once

#include <cstdint>

#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/device_code.h"

namespace halfstep::cuda {

inline constexpr int kWarpRows = 16;
inline constexpr int kAttentionWarps = 4;
inline constexpr int kAttentionThreads = kAttentionWarps * kWarpSize;

// Elements of 16 bytes.
inline constexpr int kChunk = 8;

// Rows of kWidth elements, a multiple of 16. Eight rows at the same chunk, which a matrix load
// takes at once, are in different banks: rows of a multiple of 128 bytes have their chunks
// exchanged, others are an odd number of chunks apart.
template <class T, int kWidth>
struct SharedTile {
  static constexpr int kChunks = kWidth / kChunk;
  static constexpr bool kExchanged = kChunks % 8 == 0;
  static constexpr int kStride = kExchanged ? kWidth : kWidth + kChunk;

  Pointer<T> data;

  static constexpr int64_t Bytes(int rows) { return int64_t{rows} * kStride * 2; }

  HALFSTEP_DEVICE SharedTile(int64_t byte_offset, int rows)
      : data(SharedMemory<T>(static_cast<size_t>(byte_offset), int64_t{rows} * kStride)) {}

  HALFSTEP_DEVICE Pointer<T> At(int row, int chunk) const {
    return data + (row * kStride + (kExchanged ? chunk ^ (row % 8) : chunk) * kChunk);
  }
};

// Where a row of a tile comes from or goes to; not there: zeros, or nowhere.
template <class T>
struct RowPlace {
  Pointer<T> row;
  bool there;
};

// Row r of a tile of queries in a tensor of that shape.
template <class T>
HALFSTEP_DEVICE RowPlace<T> PlaceOf(Pointer<T> data, const QueryRows& shape, const RowTile& tile,
                                    int kv_head, int r) {
  const int row = tile.first_row + r;
  if (row >= tile.rows) return {data, false};
  return {data + shape.Offset(tile.begin, kv_head, row), true};
}

// The row of a key of a packed sequence.
template <class T, class Element>
HALFSTEP_DEVICE RowPlace<Element> PlaceOfKey(Pointer<Element> data, const KeyValues<T>& kv,
                                             const RowTile& sequence, int kv_head, int key) {
  if (key >= sequence.tokens) return {data, false};
  return {data + kv.Offset(0, sequence.begin, kv_head, key), true};
}

// Loads rows [0, kRows) of the tile, zeros from head_dim elements on; row_at(r) is the RowPlace of
// row r. `aligned`: rows can be read 16 bytes at a time. The copies are part of the open group.
template <int kRows, class T, int kWidth, class RowAt>
HALFSTEP_DEVICE void LoadTile(const SharedTile<T, kWidth>& tile, int head_dim, bool aligned,
                              const RowAt& row_at) {
  constexpr int kChunks = SharedTile<T, kWidth>::kChunks;
  // Addresses of more would take the registers that hold the sums.
#pragma unroll 2
  for (int i = ThreadIndex(); i < kRows * kChunks; i += kAttentionThreads) {
    const int r = i / kChunks, c = i % kChunks;
    const RowPlace<const T> from = row_at(r);
    const int count = from.there ? head_dim - c * kChunk : 0;
    const Pointer<T> to = tile.At(r, c);
    if (aligned) {
      CopyAsync16(to, count > 0 ? from.row + c * kChunk : from.row, count > 0);
    } else {
      for (int j = 0; j < kChunk; ++j) to[j] = j < count ? from.row[c * kChunk + j] : T{};
    }
  }
}

// Stores `rows` rows of the tile from first_row on, chunks [first_chunk, first_chunk + chunks), by
// `threads` threads of which this is number `thread`.
struct StoreExtent {
  int first_row;
  int rows;
  int first_chunk;
  int chunks;
  int thread;
  int threads;
};
template <class T, int kWidth, class RowAt>
HALFSTEP_DEVICE void StoreTile(const SharedTile<T, kWidth>& tile, const StoreExtent& extent,
                               int head_dim, bool aligned, const RowAt& row_at) {
#pragma unroll 1
  for (int i = extent.thread; i < extent.rows * extent.chunks; i += extent.threads) {
    const int r = extent.first_row + i / extent.chunks;
    const int c = extent.first_chunk + i % extent.chunks;
    const RowPlace<T> to = row_at(r);
    const int count = to.there ? head_dim - c * kChunk : 0;
    const Pointer<T> from = tile.At(r, c);
    if (aligned) {
      if (count > 0) StorePack<T>(to.row, c * kChunk, LoadPack<T>(from, 0));
    } else {
      for (int j = 0; j < kChunk; ++j) {
        if (j < count) to.row[c * kChunk + j] = from[j];
      }
    }
  }
}

template <class T>
HALFSTEP_DEVICE void MultiplyPair(float (&first)[4], float (&second)[4], const uint32_t (&a)[4],
                                  const uint32_t (&b)[4]) {
  const uint32_t b_first[2] = {b[0], b[1]};
  const uint32_t b_second[2] = {b[2], b[3]};
  MatrixMultiplyAdd<T>(first, a, b_first);
  MatrixMultiplyAdd<T>(second, a, b_second);
}

// sum[j] += products of the 16 rows of `left` from left_row on with the 8 rows of `right` from
// right_row + 8 j on, over ascending columns.
template <int kTiles, class T, int kWidth>
HALFSTEP_DEVICE void AddRowProducts(const SharedTile<T, kWidth>& left, int left_row,
                                    const SharedTile<T, kWidth>& right, int right_row,
                                    float (&sum)[kTiles][4]) {
  // Addresses of all columns of a wide tile would not fit the registers beside the sums.
  [[maybe_unused]] constexpr int kUnroll = kWidth > 128 ? 2 : kWidth > 96 ? 4 : kWidth / 16;
  const int lane = Lane();
#pragma unroll kUnroll
  for (int k = 0; k < kWidth / 16; ++k) {
    uint32_t a[4];
    LoadMatrix4<T>(a, left.At(left_row + lane % 16, 2 * k + lane / 16));
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
      uint32_t b[4];
      LoadMatrix4<T>(b,
                     right.At(right_row + j * 8 + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
      MultiplyPair<T>(sum[j], sum[j + 1], a, b);
    }
  }
}

// sum[n] += weights (16 rows x 8 kWeights columns, rounded to T) times columns [8 n, 8 n + 8) from
// chunk first_chunk on of the first 8 kWeights rows of `right`, over ascending rows of `right`.
template <int kWeights, int kTiles, class T, int kWidth>
HALFSTEP_DEVICE void AddWeightedRows(const float (&weights)[kWeights][4],
                                     const SharedTile<T, kWidth>& right, int first_chunk,
                                     float (&sum)[kTiles][4]) {
  const int lane = Lane();
#pragma unroll
  for (int k = 0; k < kWeights / 2; ++k) {
    const float(&low)[4] = weights[2 * k];
    const float(&high)[4] = weights[2 * k + 1];
    const uint32_t a[4] = {RoundPair<T>(low[0], low[1]), RoundPair<T>(low[2], low[3]),
                           RoundPair<T>(high[0], high[1]), RoundPair<T>(high[2], high[3])};
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t b[4];
      LoadMatrix4Transposed<T>(b, right.At(k * 16 + lane % 16, first_chunk + n + lane / 16));
      MultiplyPair<T>(sum[n], sum[n + 1], a, b);
    }
  }
}

// Puts the results of a warp into the 16 rows of a tile from `row` on, chunks from first_chunk on,
// each as round(value, h) of its half h.
template <int kTiles, class T, int kWidth, class RoundTo>
HALFSTEP_DEVICE void PutResults(const float (&value)[kTiles][4], const SharedTile<T, kWidth>& tile,
                                int row, int first_chunk, const RoundTo& round) {
  const int lane = Lane();
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Pointer<T> to = tile.At(row + lane / 4 + 8 * h, first_chunk + n);
      to[lane % 4 * 2] = round(value[n][2 * h], h);
      to[lane % 4 * 2 + 1] = round(value[n][2 * h + 1], h);
    }
  }
}

// Over the four lanes that share a row.
HALFSTEP_DEVICE float QuadSum(float value) {
  value += ShuffleXor(value, 1);
  return value + ShuffleXor(value, 2);
}
HALFSTEP_DEVICE float Larger(float a, float b) { return b > a ? b : a; }
HALFSTEP_DEVICE float QuadMax(float value) {
  value = Larger(value, ShuffleXor(value, 1));
  return Larger(value, ShuffleXor(value, 2));
}

// Calls f.operator()<width>() with the smallest width of a kernel that holds head_dim, at most
// kMaxHeadDim.
template <class F>
void WithTileWidth(int64_t head_dim, const F& f) {
  if (head_dim <= 32) return f.template operator()<32>();
  if (head_dim <= 64) return f.template operator()<64>();
  if (head_dim <= 80) return f.template operator()<80>();
  if (head_dim <= 96) return f.template operator()<96>();
  if (head_dim <= 128) return f.template operator()<128>();
  return f.template operator()<256>();
}

}  // namespace halfstep::cuda
