// SPDX-License-Identifier: Apache-2.0
// Causal attention forward: one tile function serves packed sequences (training) and the paged
// cache (prefill and decode), so that equal inputs give equal bits on both.
#include "kernels/cpu/attention.h"

#include <algorithm>
#include <limits>

#include "kernels/check.h"
#include "kernels/cpu/dispatch_float.h"
#include "kernels/cpu/parallel.h"
#include "kernels/workspace.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/attention-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {
namespace {

// The query rows of one key-value head in one sequence.
template <class T>
struct QueryRows {
  const T* q;           // head 0 of the group of the first query
  T* out;               // the same place in the output
  float* lse;           // of that head and query, or null
  size_t token_stride;  // elements from one query to the next in q and out
  size_t lse_stride;    // elements from one head to the next in lse
  size_t group;         // heads that share the key-value head
  size_t head_dim;
  size_t first_position;  // of the first query in its sequence
  float scale;

  size_t Offset(size_t row) const { return row / group * token_stride + row % group * head_dim; }
  size_t Position(size_t row) const { return first_position + row / group; }
};

// Keys [head_dim][32] and values [32][padded head_dim] of one block.
template <class B>
struct KvBlock {
  const B* keys;
  const B* values;
};

constexpr size_t TileScratch(size_t head_dim) {
  return kTileRows * (2 * PadHeadDim(head_dim) + kBlock);
}

// The online softmax of the rows of a tile.
struct alignas(64) SoftmaxState {
  float largest[kVirtualLanes];  // score so far, by row
  float alpha[kVirtualLanes];    // exp(previous largest - largest), by row
  F32x16 total[kTileRows];       // lane i: sum of the probabilities of keys i, i + 16, ...
  size_t limit[kTileRows];       // keys of the block that the row sees; ascends
};

// Turns the scores of one block, [Rows][32], into probabilities relative to the largest score so
// far, rounded to T. A masked key has probability 0, which changes no bit.
template <class T, size_t Rows>
HWY_INLINE void Softmax(float scale, bool first_block, float* p, SoftmaxState& state) {
  const float kMinusInfinity = -std::numeric_limits<float>::infinity();
  const F32x16 masked = Set16(kMinusInfinity);
  alignas(64) float next[kVirtualLanes];
  std::copy_n(state.largest, kVirtualLanes, next);
  for (size_t r = 0; r < Rows; ++r) {
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
  std::copy_n(next, kVirtualLanes, state.largest);
  for (size_t r = 0; r < Rows; ++r) {
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
template <size_t Rows, size_t Vectors, class B>
HWY_NOINLINE void AddValues(const float* p, const SoftmaxState& state, bool first_block,
                            const B* values, size_t padded, float* acc) {
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
  const size_t shared = state.limit[0];
  for (size_t j = 0; j < shared; ++j) Step(left, j, values + j * padded, sum);
  for (size_t j = shared; j < state.limit[Rows - 1]; ++j) {
    F32x16 with[Rows][Vectors];
    HWY_UNROLL(8)
    for (size_t r = 0; r < Rows; ++r) {
      HWY_UNROLL(2)
      for (size_t v = 0; v < Vectors; ++v) with[r][v] = sum[r][v];
    }
    Step(left, j, values + j * padded, with);
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
HWY_INLINE size_t Finish(const QueryRows<T>& rows, size_t first_row, size_t count,
                         const SoftmaxState& state, const float* acc) {
  const size_t padded = PadHeadDim(rows.head_dim);
  size_t saturated = 0;
  for (size_t r = 0; r < count; ++r) {
    const size_t row = first_row + r;
    const float sum = ReduceSum(state.total[r]);
    const F32x16 inverse = Set16(1.0f / sum);
    T* const to = rows.out + rows.Offset(row);
    for (size_t d = 0; d < rows.head_dim; d += kVirtualLanes) {
      saturated += StoreSaturated16(Load16(acc + r * padded + d) * inverse, to + d,
                                    std::min(rows.head_dim - d, kVirtualLanes));
    }
    if (rows.lse != nullptr) {
      rows.lse[row % rows.group * rows.lse_stride + row / rows.group] =
          state.largest[r] + LogOne(sum);
    }
  }
  return saturated;
}

// `Rows` consecutive rows over all blocks that they see. block(b) is the KvBlock of positions
// [32 b, 32 b + 32). Returns how many stores were saturated.
template <class T, size_t Rows, class Blocks>
HWY_INLINE size_t AttendTile(const QueryRows<T>& rows, size_t first_row, const Blocks& block,
                             float* scratch) {
  const size_t head_dim = rows.head_dim;
  const size_t padded = PadHeadDim(head_dim);
  float* const q = scratch;
  float* const acc = q + Rows * padded;
  float* const p = acc + Rows * padded;
  for (size_t r = 0; r < Rows; ++r) {
    LoadRows(rows.q + rows.Offset(first_row + r), 0, 1, head_dim, q + r * padded);
  }
  SoftmaxState state;
  std::fill_n(state.largest, kVirtualLanes, -std::numeric_limits<float>::infinity());

  const size_t last = rows.Position(first_row + Rows - 1);
  for (size_t begin = 0; begin <= last; begin += kBlock) {
    for (size_t r = 0; r < Rows; ++r) {
      const size_t end = rows.Position(first_row + r) + 1;
      state.limit[r] = end <= begin ? 0 : std::min(end - begin, kBlock);
    }
    const auto kv = block(begin / kBlock);
    const LeftFactor left{q, padded, 1};
    if (state.limit[Rows - 1] > kVirtualLanes) {
      Product<Start::kZero, Rows, 2>(left, kv.keys, kBlock, head_dim, p, kBlock);
    } else {
      Product<Start::kZero, Rows, 1>(left, kv.keys, kBlock, head_dim, p, kBlock);
    }
    Softmax<T, Rows>(rows.scale, begin == 0, p, state);
    ForColumns(padded, [&]<size_t Vectors>(size_t d) HWY_ATTR {
      AddValues<Rows, Vectors>(p, state, begin == 0, kv.values + d, padded, acc + d);
    });
  }
  return Finish(rows, first_row, Rows, state, acc);
}

// Rows of `queries` queries.
template <class T, class Blocks>
size_t Attend(const QueryRows<T>& rows, size_t queries, const Blocks& block, float* scratch) {
  size_t saturated = 0;
  const size_t count = queries * rows.group;
  for (size_t first = 0; first < count; first += kTileRows) {
    WithRows(std::min(count - first, kTileRows), [&]<size_t Rows>() HWY_ATTR {
      saturated += AttendTile<T, Rows>(rows, first, block, scratch);
    });
  }
  return saturated;
}

int64_t LongestSequence(ConstTensor cu_seqlens) {
  const int32_t* start = cu_seqlens.as<int32_t>();
  int64_t longest = 0;
  for (int64_t s = 0; s + 1 < cu_seqlens.dim(0); ++s) {
    longest = std::max<int64_t>(longest, start[s + 1] - start[s]);
  }
  return longest;
}

template <class T>
void PackedAttentionOf(const ExecContext& ctx, const PackedAttention& in, Tensor out, Tensor lse) {
  const size_t heads = static_cast<size_t>(in.q.dim(1));
  const size_t kv_heads = static_cast<size_t>(in.k.dim(1));
  const size_t head_dim = static_cast<size_t>(in.q.dim(2));
  const size_t padded = PadHeadDim(head_dim);
  const size_t group = heads / kv_heads;
  const size_t blocks = (static_cast<size_t>(LongestSequence(in.cu_seqlens)) + kBlock - 1) / kBlock;
  const size_t arranged = blocks * kBlock * (head_dim + padded);
  const size_t per_thread = arranged + TileScratch(head_dim);
  Workspace::Scope scope(ctx.workspace);
  float* const scratch = scope.Array<float>(static_cast<size_t>(Threads(ctx)) * per_thread);
  const int32_t* start = in.cu_seqlens.as<int32_t>();

  ParallelFor(ctx, (in.cu_seqlens.dim(0) - 1) * static_cast<int64_t>(kv_heads),
              [&](int64_t task, int thread) {
                const size_t s = static_cast<size_t>(task) / kv_heads;
                const size_t kv_head = static_cast<size_t>(task) % kv_heads;
                const size_t first = static_cast<size_t>(start[s]);
                const size_t tokens = static_cast<size_t>(start[s + 1]) - first;
                float* const keys = scratch + static_cast<size_t>(thread) * per_thread;
                float* const values = keys + blocks * kBlock * head_dim;
                float* const tile = values + blocks * kBlock * padded;
                const size_t kv_offset = (first * kv_heads + kv_head) * head_dim;
                const size_t kv_stride = kv_heads * head_dim;
                TransposeBlocks(in.k.as<T>() + kv_offset, kv_stride, tokens, head_dim, keys);
                LoadRows(in.v.as<T>() + kv_offset, kv_stride, tokens, head_dim, values);

                const size_t head = kv_head * group;
                const size_t q_offset = (first * heads + head) * head_dim;
                const size_t all_tokens = static_cast<size_t>(in.q.dim(0));
                const QueryRows<T> rows{.q = in.q.as<T>() + q_offset,
                                        .out = out.as<T>() + q_offset,
                                        .lse = lse.as<float>() + head * all_tokens + first,
                                        .token_stride = heads * head_dim,
                                        .lse_stride = all_tokens,
                                        .group = group,
                                        .head_dim = head_dim,
                                        .first_position = 0,
                                        .scale = in.scale};
                const auto block = [=](size_t b) {
                  return KvBlock<float>{keys + b * kBlock * head_dim, values + b * kBlock * padded};
                };
                CountSaturated(ctx, static_cast<int64_t>(Attend(rows, tokens, block, tile)));
              });
}

// Queries [begin, end) of a sequence for one key-value head.
struct PagedItem {
  int32_t sequence;
  int32_t kv_head;
  int32_t begin;
  int32_t end;
};

// Queries of one item: long enough to use whole tiles, short enough to share a prefill among
// threads.
constexpr int32_t kItemQueries = 32;

template <class Visit>
void ForEachItem(const PagedBatch& batch, int64_t kv_heads, const Visit& visit) {
  const int32_t* start = batch.query_start.as<int32_t>();
  for (int32_t s = 0; s < static_cast<int32_t>(batch.context.dim(0)); ++s) {
    const int32_t queries = start[s + 1] - start[s];
    for (int32_t begin = 0; begin < queries; begin += kItemQueries) {
      for (int32_t h = 0; h < static_cast<int32_t>(kv_heads); ++h) {
        visit(PagedItem{s, h, begin, std::min(begin + kItemQueries, queries)});
      }
    }
  }
}

template <class T>
void PagedAttentionOf(const ExecContext& ctx, ConstTensor q, const KvCacheLayer& cache,
                      const PagedBatch& batch, float scale, Tensor out) {
  const size_t heads = static_cast<size_t>(q.dim(1));
  const size_t kv_heads = static_cast<size_t>(cache.kv_heads);
  const size_t head_dim = static_cast<size_t>(cache.head_dim);
  const size_t padded = PadHeadDim(head_dim);
  const size_t group = heads / kv_heads;
  const size_t head_block = kBlock * padded;  // elements of one key-value head in a block
  const int32_t* start = batch.query_start.as<int32_t>();
  const int32_t* context = batch.context.as<int32_t>();
  const int32_t* tables = batch.block_tables.as<int32_t>();
  const size_t max_blocks = static_cast<size_t>(batch.block_tables.dim(1));
  const T* const keys = static_cast<const T*>(cache.keys.data());
  const T* const values = static_cast<const T*>(cache.values.data());

  Workspace::Scope scope(ctx.workspace);
  size_t items = 0;
  ForEachItem(batch, cache.kv_heads, [&](const PagedItem&) { ++items; });
  PagedItem* const item = scope.Array<PagedItem>(items);
  int64_t keys_read = 0;
  size_t filled = 0;
  ForEachItem(batch, cache.kv_heads, [&](const PagedItem& i) {
    item[filled++] = i;
    keys_read += static_cast<int64_t>(i.end - i.begin) * context[i.sequence];
  });
  const size_t per_thread = TileScratch(head_dim);
  float* const scratch = scope.Array<float>(static_cast<size_t>(Threads(ctx)) * per_thread);

  // About 100 000 multiply-adds of scores and values, or more, per task.
  const int64_t work = keys_read * static_cast<int64_t>(2 * head_dim * group);
  const int64_t grain =
      items == 0 ? 1 : static_cast<int64_t>(items) * 100000 / std::max<int64_t>(work, 1) + 1;
  ParallelRanges(
      ctx, static_cast<int64_t>(items), grain, [&](int64_t begin, int64_t end, int thread) {
        size_t saturated = 0;
        for (int64_t i = begin; i < end; ++i) {
          const PagedItem& it = item[i];
          const size_t s = static_cast<size_t>(it.sequence);
          const size_t queries = static_cast<size_t>(start[s + 1] - start[s]);
          HALFSTEP_CHECK_LE(queries, static_cast<size_t>(context[s]));
          HALFSTEP_CHECK_LE(static_cast<size_t>(context[s]), max_blocks * kBlock);
          const size_t head = static_cast<size_t>(it.kv_head) * group;
          const size_t offset =
              (static_cast<size_t>(start[s] + it.begin) * heads + head) * head_dim;
          const QueryRows<T> rows{.q = q.as<T>() + offset,
                                  .out = out.as<T>() + offset,
                                  .lse = nullptr,
                                  .token_stride = heads * head_dim,
                                  .lse_stride = 0,
                                  .group = group,
                                  .head_dim = head_dim,
                                  .first_position = static_cast<size_t>(context[s]) - queries +
                                                    static_cast<size_t>(it.begin),
                                  .scale = scale};
          const auto block = [&](size_t b) {
            const size_t at = (static_cast<size_t>(tables[s * max_blocks + b]) * kv_heads +
                               static_cast<size_t>(it.kv_head)) *
                              head_block;
            return KvBlock<T>{keys + at, values + at};
          };
          saturated += Attend(rows, static_cast<size_t>(it.end - it.begin), block,
                              scratch + static_cast<size_t>(thread) * per_thread);
        }
        CountSaturated(ctx, static_cast<int64_t>(saturated));
      });
}

void CausalAttentionImpl(const ExecContext& ctx, const PackedAttention& in, Tensor out,
                         Tensor lse) {
  DispatchFloat(in.q.dtype(), [&]<class T>() { PackedAttentionOf<T>(ctx, in, out, lse); });
}

void PagedCausalAttentionImpl(const ExecContext& ctx, ConstTensor q, const KvCacheLayer& cache,
                              const PagedBatch& batch, float scale, Tensor out) {
  DispatchFloat(q.dtype(),
                [&]<class T>() { PagedAttentionOf<T>(ctx, q, cache, batch, scale, out); });
}

}  // namespace
}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfstep::cpu {

HWY_EXPORT(CausalAttentionImpl);
void CausalAttention(const ExecContext& ctx, const PackedAttention& in, Tensor out, Tensor lse) {
  HWY_DYNAMIC_DISPATCH(CausalAttentionImpl)(ctx, in, out, lse);
}

HWY_EXPORT(PagedCausalAttentionImpl);
void PagedCausalAttention(const ExecContext& ctx, ConstTensor q, const KvCacheLayer& cache,
                          const PagedBatch& batch, float scale, Tensor out) {
  HWY_DYNAMIC_DISPATCH(PagedCausalAttentionImpl)(ctx, q, cache, batch, scale, out);
}

}  // namespace halfstep::cpu
#endif
