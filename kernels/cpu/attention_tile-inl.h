// SPDX-License-Identifier: Apache-2.0
// The online softmax of attention, for packed sequences and for the paged cache alike: equal inputs
// give equal bits on both. Included once per Highway target.

#if defined(HALFSTEP_KERNELS_CPU_ATTENTION_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFSTEP_KERNELS_CPU_ATTENTION_TILE_INL_H_
#undef HALFSTEP_KERNELS_CPU_ATTENTION_TILE_INL_H_
#else
#define HALFSTEP_KERNELS_CPU_ATTENTION_TILE_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <limits>
#include <type_traits>

#include "kernels/cpu/attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

// One query of one head.
template <class T>
struct Row {
  const T* q;
  T* out;
  float* lse;       // or null
  size_t position;  // in its sequence
};

// What all rows share.
struct Attributes {
  size_t head_dim;
  size_t padded;
  float scale;
  // Whether probabilities are rounded to T before P V, as in training.
  bool round_probabilities = true;
};

// Blocks [begin, end) of the keys that a tile attends to. With `partial`, the tile leaves its sums
// there, PartialFloats a row, and the output to MergePartials.
struct KeyRange {
  size_t begin = 0;
  size_t end = std::numeric_limits<size_t>::max();
  float* partial = nullptr;
};

// Of one row of a partial result: sums [padded head_dim], the largest score, the total.
HWY_INLINE constexpr size_t PartialFloats(size_t padded) { return padded + kVirtualLanes; }

// Keys [head_dim][32] and values [32][padded head_dim] of one block.
template <class B>
struct KvBlock {
  const B* keys;
  const B* values;
};

// Walks the rows of one key-value head of one sequence: query by query, the heads of its group
// within.
template <class T>
struct RowCounter {
  const T* q;  // first head of the group of the current query
  T* out;
  float* lse;  // of the same, or null
  size_t lse_stride;
  size_t token_stride;
  size_t head_dim;
  size_t group;
  size_t position;  // of the current query
  size_t member = 0;

  Row<T> operator()() {
    const size_t at = member * head_dim;
    const Row<T> row{q + at, out + at, lse == nullptr ? nullptr : lse + member * lse_stride,
                     position};
    PrefetchRow(row.q + kPrefetchRows * token_stride, head_dim);
    if (++member == group) {
      member = 0;
      q += token_stride;
      out += token_stride;
      if (lse != nullptr) ++lse;
      ++position;
    }
    return row;
  }
};

// Floats that Attend wants as scratch.
constexpr size_t TileScratch(size_t head_dim) {
  return kAttentionTileRows * (2 * PadHeadDim(head_dim) + kBlock);
}

// The online softmax of the rows of a tile.
struct alignas(64) SoftmaxState {
  float largest[kVirtualLanes];      // score so far, by row
  float alpha[kVirtualLanes];        // exp(previous largest - largest), by row
  F32x16 total[kAttentionTileRows];  // lane i: sum of the probabilities of keys i, i + 16, ...
  size_t limit[kAttentionTileRows];  // keys of the block that the row sees; ascends within a head
};

// Turns the scores of one block, [rows][32], into probabilities relative to the largest score so
// far, rounded to T (FP32: not at all). A masked key has probability 0, which changes no bit.
template <class T>
HWY_NOINLINE void Softmax(size_t rows, float scale, bool first_block, float* p,
                          SoftmaxState& state) {
  const F32x16 masked = Set16(-std::numeric_limits<float>::infinity());
  alignas(64) float next[kVirtualLanes];
  Store16(Load16(state.largest), next);
  for (size_t r = 0; r < rows; ++r) {
    float* const score = p + r * kBlock;
    const size_t limit = state.limit[r];
    F32x16 low = Load16(score) * Set16(scale);
    if (limit < kVirtualLanes) low = Select(FirstLanes(limit), low, masked);
    Store16(low, score);
    F32x16 high = masked;
    if (limit > kVirtualLanes) {
      high = Load16(score + kVirtualLanes) * Set16(scale);
      if (limit < kBlock) high = Select(FirstLanes(limit - kVirtualLanes), high, masked);
      Store16(high, score + kVirtualLanes);
    }
    next[r] = std::max(next[r], ReduceMax(Max(low, high)));
  }
  // In the first block the totals are 0 and the factor does not matter.
  if (!first_block) Store16(Exp(Load16(state.largest) - Load16(next)), state.alpha);
  Store16(Load16(next), state.largest);
  for (size_t r = 0; r < rows; ++r) {
    float* const score = p + r * kBlock;
    const F32x16 largest = Set16(next[r]);
    const F32x16 low = Exp(Load16(score) - largest);
    Store16(RoundTo<T>(low), score);
    F32x16 sum = low;
    if (state.limit[r] > kVirtualLanes) {
      const F32x16 high = Exp(Load16(score + kVirtualLanes) - largest);
      Store16(RoundTo<T>(high), score + kVirtualLanes);
      sum = low + high;
    }
    state.total[r] = first_block ? sum : MulAdd(state.total[r], Set16(state.alpha[r]), sum);
  }
}

// acc[r] = acc[r] * alpha[r] + sum of p[r][j] * values[j] over ascending j < limit[r]; the first
// block begins at 0. Values at and past the limit change nothing: what they hold may be not a
// number.
template <size_t Rows, size_t Vectors, size_t Heads, class B>
HWY_NOINLINE void AddValues(const float* p, const SoftmaxState& state, bool first_block,
                            const B* const (&values)[Heads], size_t padded, float* acc) {
  F32x16 sum[Rows][Vectors];
  HWY_UNROLL(8)
  for (size_t r = 0; r < Rows; ++r) {
    HWY_UNROLL(2)
    for (size_t v = 0; v < Vectors; ++v) {
      sum[r][v] = first_block
                      ? Zero16()
                      : Load16(acc + r * padded + v * kVirtualLanes) * Set16(state.alpha[r]);
    }
  }
  const LeftFactor left{p, kBlock, 1};
  const B* right[Heads];
  std::copy_n(values, Heads, right);
  const size_t shared = state.limit[0];
  for (size_t j = 0; j < shared; ++j) Step(left, j, right, j * padded, sum);
  for (size_t j = shared; j < state.limit[Rows - 1]; ++j) {
    F32x16 with[Rows][Vectors];
    HWY_UNROLL(8)
    for (size_t r = 0; r < Rows; ++r) {
      HWY_UNROLL(2)
      for (size_t v = 0; v < Vectors; ++v) with[r][v] = sum[r][v];
    }
    Step(left, j, right, j * padded, with);
    HWY_UNROLL(8)
    for (size_t r = 0; r < Rows; ++r) {
      const Mask16 seen = FirstLanes(j < state.limit[r] ? kVirtualLanes : 0);
      HWY_UNROLL(2)
      for (size_t v = 0; v < Vectors; ++v) sum[r][v] = Select(seen, with[r][v], sum[r][v]);
    }
  }
  HWY_UNROLL(8)
  for (size_t r = 0; r < Rows; ++r) {
    HWY_UNROLL(2)
    for (size_t v = 0; v < Vectors; ++v) {
      Store16(sum[r][v], acc + r * padded + v * kVirtualLanes);
    }
  }
}

// out = acc / total, lse = largest + log(total). Returns how many stores were saturated.
template <class T>
HWY_NOINLINE size_t Finish(const Row<T>* rows, size_t count, const Attributes& attributes,
                           const SoftmaxState& state, const float* acc) {
  alignas(64) float total[kVirtualLanes];
  alignas(64) float inverse[kVirtualLanes];
  std::fill_n(total, kVirtualLanes, 1.0f);
  for (size_t r = 0; r < count; ++r) total[r] = ReduceSum(state.total[r]);
  Store16(Set16(1.0f) / Load16(total), inverse);
  size_t saturated = 0;
  for (size_t r = 0; r < count; ++r) {
    for (size_t d = 0; d < attributes.head_dim; d += kVirtualLanes) {
      saturated +=
          StoreSaturated16(Load16(acc + r * attributes.padded + d) * Set16(inverse[r]),
                           rows[r].out + d, std::min(attributes.head_dim - d, kVirtualLanes));
    }
  }
  if (rows[0].lse != nullptr) {
    alignas(64) float lse[kVirtualLanes];
    Store16(Load16(state.largest) + Log(Load16(total)), lse);
    for (size_t r = 0; r < count; ++r) *rows[r].lse = lse[r];
  }
  return saturated;
}

// Leaves the sums, the largest score and the total of each row for MergePartials.
HWY_INLINE void KeepPartial(size_t count, const Attributes& attributes, const SoftmaxState& state,
                            const float* acc, float* partial) {
  for (size_t r = 0; r < count; ++r, partial += PartialFloats(attributes.padded)) {
    std::copy_n(acc + r * attributes.padded, attributes.padded, partial);
    partial[attributes.padded] = state.largest[r];
    partial[attributes.padded + 1] = ReduceSum(state.total[r]);
  }
}

// The output of one row from `count` partial results, `stride` floats apart. Returns how many
// stores were saturated.
template <class T>
HWY_NOINLINE size_t MergePartials(const float* partial, size_t count, size_t stride,
                                  const Attributes& attributes, T* out) {
  float largest = -std::numeric_limits<float>::infinity();
  for (size_t s = 0; s < count; ++s) {
    largest = std::max(largest, partial[s * stride + attributes.padded]);
  }
  float total = 0;
  for (size_t s = 0; s < count; ++s) {
    const float* const part = partial + s * stride + attributes.padded;
    total += part[1] * ExpOne(part[0] - largest);
  }
  size_t saturated = 0;
  for (size_t d = 0; d < attributes.head_dim; d += kVirtualLanes) {
    F32x16 sum = Zero16();
    for (size_t s = 0; s < count; ++s) {
      const float* const part = partial + s * stride;
      sum = MulAdd(Load16(part + d), Set16(ExpOne(part[attributes.padded] - largest)), sum);
    }
    saturated += StoreSaturated16(sum * Set16(1.0f / total), out + d,
                                  std::min(attributes.head_dim - d, kVirtualLanes));
  }
  return saturated;
}

// `Rows` rows, divided evenly among `Heads` key-value heads of one sequence, over the blocks of
// `range` that they see. block(b, h) is the KvBlock of positions [32 b, 32 b + 32) for the h-th of
// these heads. Returns how many stores were saturated.
template <class T, size_t Rows, size_t Heads, class Blocks>
HWY_INLINE size_t AttendTile(const Row<T>* rows, const Attributes& attributes,
                             const KeyRange& range, const Blocks& block, float* scratch) {
  using B = std::remove_cvref_t<decltype(*block(0, 0).keys)>;
  const size_t head_dim = attributes.head_dim;
  const size_t padded = attributes.padded;
  float* const q = scratch;
  float* const acc = q + Rows * padded;
  float* const p = acc + Rows * padded;
  for (size_t r = 0; r < Rows; ++r) LoadRows(rows[r].q, 0, 1, head_dim, q + r * padded);
  SoftmaxState state;
  std::fill_n(state.largest, kVirtualLanes, -std::numeric_limits<float>::infinity());

  const size_t end = std::min(rows[Rows - 1].position / kBlock + 1, range.end);
  for (size_t b = range.begin; b < end; ++b) {
    const size_t begin = b * kBlock;
    const bool first = b == range.begin;
    for (size_t r = 0; r < Rows; ++r) {
      const size_t seen = rows[r].position + 1;
      state.limit[r] = seen <= begin ? 0 : std::min(seen - begin, kBlock);
    }
    const B* keys[Heads];
    const B* values[Heads];
    for (size_t h = 0; h < Heads; ++h) {
      const KvBlock<B> kv = block(b, h);
      keys[h] = kv.keys;
      values[h] = kv.values;
    }
    const LeftFactor left{q, padded, 1};
    if (state.limit[Rows - 1] > kVirtualLanes) {
      Product<Start::kZero, Rows, 2>(left, keys, kBlock, head_dim, p, kBlock);
    } else {
      Product<Start::kZero, Rows, 1>(left, keys, kBlock, head_dim, p, kBlock);
    }
    if (attributes.round_probabilities) {
      Softmax<T>(Rows, attributes.scale, first, p, state);
    } else {
      Softmax<float>(Rows, attributes.scale, first, p, state);
    }
    ForColumns(padded, [&]<size_t Vectors>(size_t d) HWY_ATTR {
      const B* columns[Heads];
      for (size_t h = 0; h < Heads; ++h) columns[h] = values[h] + d;
      AddValues<Rows, Vectors>(p, state, first, columns, padded, acc + d);
    });
  }
  if (range.partial == nullptr) return Finish(rows, Rows, attributes, state, acc);
  KeepPartial(Rows, attributes, state, acc, range.partial);
  return 0;
}

// The same for any number of rows, in tiles; next_row() gives one row after the other, head by
// head. With more than one head, all rows must fit one tile.
template <class T, size_t Heads, class NextRow, class Blocks>
HWY_INLINE size_t Attend(size_t count, NextRow& next_row, const Attributes& attributes,
                         KeyRange range, const Blocks& block, float* scratch) {
  size_t saturated = 0;
  for (size_t first = 0; first < count; first += kAttentionTileRows) {
    const size_t used = std::min(count - first, kAttentionTileRows);
    Row<T> tile[kAttentionTileRows] = {};
    for (size_t r = 0; r < used; ++r) tile[r] = next_row();
    WithRows<kAttentionTileRows / Heads>(used / Heads, [&]<size_t RowsPerHead>() HWY_ATTR {
      saturated +=
          AttendTile<T, RowsPerHead * Heads, Heads>(tile, attributes, range, block, scratch);
    });
    if (range.partial != nullptr) range.partial += used * PartialFloats(attributes.padded);
  }
  return saturated;
}

}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
