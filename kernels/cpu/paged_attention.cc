// SPDX-License-Identifier: Apache-2.0
// Causal attention over the paged cache, for prefill chunks and decoding. Items of work are query
// ranges of one sequence; a thread takes a range of items.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/dispatch_float.h"
#include "kernels/cpu/parallel.h"
#include "kernels/workspace.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/paged_attention.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/attention_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {
namespace {

// Multiply-adds of scores and values that a thread should get at least.
constexpr int64_t kGrainMultiplyAdds = 100000;

// Queries of one item: enough for whole tiles, few enough to share a prefill among threads.
constexpr int32_t kItemQueries = 32;

// Key-value heads that share a tile when few queries leave room: one head alone would wait for the
// latency of its chains.
constexpr int32_t kMaxTileHeads = kAttentionTileRows >= 8 ? 4 : 2;

// Queries [begin, end) of a sequence, for `heads` key-value heads from kv_head on.
struct Item {
  int32_t sequence;
  int32_t kv_head;
  int32_t heads;
  int32_t begin;
  int32_t end;
};

template <class T>
struct Arguments {
  const T* q;
  T* out;
  const T* keys;
  const T* values;
  const int32_t* start;
  const int32_t* context;
  const int32_t* tables;
  size_t sequences;
  size_t max_blocks;
  size_t kv_heads;
  size_t group;
  Attributes attributes;
};

template <class T, class Visit>
void ForEachItem(const Arguments<T>& a, const Visit& visit) {
  const int32_t kv_heads = static_cast<int32_t>(a.kv_heads);
  const int32_t group = static_cast<int32_t>(a.group);
  for (int32_t s = 0; s < static_cast<int32_t>(a.sequences); ++s) {
    const int32_t queries = a.start[s + 1] - a.start[s];
    HALFSTEP_CHECK_LE(queries, a.context[s]);
    HALFSTEP_CHECK_LE(static_cast<size_t>(a.context[s]), a.max_blocks * kBlock);
    for (int32_t begin = 0; begin < queries; begin += kItemQueries) {
      const int32_t end = std::min(begin + kItemQueries, queries);
      const int32_t rows = (end - begin) * group;
      const int32_t together =
          std::clamp(static_cast<int32_t>(kAttentionTileRows) / rows, 1, kMaxTileHeads);
      for (int32_t h = 0; h < kv_heads; h += together) {
        visit(Item{s, h, std::min(together, kv_heads - h), begin, end});
      }
    }
  }
}

template <size_t Heads, class T>
size_t AttendHeads(const Arguments<T>& a, const Item& item, float* scratch) {
  const size_t s = static_cast<size_t>(item.sequence);
  const size_t head_dim = a.attributes.head_dim;
  const size_t token_stride = a.kv_heads * a.group * head_dim;
  const size_t first_head = static_cast<size_t>(item.kv_head);
  const size_t offset = static_cast<size_t>(a.start[s] + item.begin) * token_stride;
  const size_t position =
      static_cast<size_t>(a.context[s] - (a.start[s + 1] - a.start[s]) + item.begin);
  const size_t rows_per_head = static_cast<size_t>(item.end - item.begin) * a.group;

  RowCounter<T> rows[Heads];
  for (size_t h = 0; h < Heads; ++h) {
    const size_t at = offset + (first_head + h) * a.group * head_dim;
    rows[h] = {a.q + at, a.out + at, nullptr, 0, token_stride, head_dim, a.group, position};
  }
  size_t head = 0;
  size_t taken = 0;  // rows of this head
  const auto next_row = [&] {
    if (taken == rows_per_head) {
      taken = 0;
      ++head;
    }
    ++taken;
    return rows[head]();
  };
  const int32_t* const table = a.tables + s * a.max_blocks;
  const auto block = [&](size_t b, size_t h) {
    const size_t at = (static_cast<size_t>(table[b]) * a.kv_heads + first_head + h) * kBlock *
                      a.attributes.padded;
    return KvBlock<T>{a.keys + at, a.values + at};
  };
  return Attend<T, Heads>(Heads * rows_per_head, next_row, a.attributes, block, scratch);
}

template <class T, size_t Heads = kMaxTileHeads>
size_t AttendItem(const Arguments<T>& a, const Item& item, float* scratch) {
  if constexpr (Heads > 1) {
    if (static_cast<size_t>(item.heads) < Heads) {
      return AttendItem<T, Heads - 1>(a, item, scratch);
    }
  }
  return AttendHeads<Heads>(a, item, scratch);
}

template <class T>
void PagedAttentionOf(const ExecContext& ctx, const Arguments<T>& a) {
  Workspace::Scope scope(ctx.workspace);
  int64_t count = 0;
  int64_t keys_read = 0;  // times heads and queries
  ForEachItem(a, [&](const Item& item) {
    ++count;
    keys_read += int64_t{item.heads} * (item.end - item.begin) * a.context[item.sequence];
  });
  if (count == 0) return;
  Item* const items = scope.Array<Item>(static_cast<size_t>(count));
  int64_t filled = 0;
  ForEachItem(a, [&](const Item& item) { items[filled++] = item; });
  const size_t per_thread = TileScratch(a.attributes.head_dim);
  float* const scratch = scope.Array<float>(static_cast<size_t>(Threads(ctx)) * per_thread);

  const int64_t work = keys_read * static_cast<int64_t>(2 * a.group * a.attributes.head_dim);
  const int64_t grain = kGrainMultiplyAdds / std::max<int64_t>(work / count, 1) + 1;
  ParallelRanges(ctx, count, grain, [&](int64_t begin, int64_t end, int thread) {
    size_t saturated = 0;
    for (int64_t i = begin; i < end; ++i) {
      saturated += AttendItem(a, items[i], scratch + static_cast<size_t>(thread) * per_thread);
    }
    CountSaturated(ctx, static_cast<int64_t>(saturated));
  });
}

void PagedCausalAttentionImpl(const ExecContext& ctx, ConstTensor q, const KvCacheLayer& cache,
                              const PagedBatch& batch, float scale, Tensor out) {
  const size_t head_dim = static_cast<size_t>(cache.head_dim);
  DispatchFloat(q.dtype(), [&]<class T>() {
    PagedAttentionOf<T>(ctx, {.q = q.as<T>(),
                              .out = out.as<T>(),
                              .keys = static_cast<const T*>(cache.keys.data()),
                              .values = static_cast<const T*>(cache.values.data()),
                              .start = batch.query_start.as<int32_t>(),
                              .context = batch.context.as<int32_t>(),
                              .tables = batch.block_tables.as<int32_t>(),
                              .sequences = static_cast<size_t>(batch.context.dim(0)),
                              .max_blocks = static_cast<size_t>(batch.block_tables.dim(1)),
                              .kv_heads = static_cast<size_t>(cache.kv_heads),
                              .group = static_cast<size_t>(q.dim(1) / cache.kv_heads),
                              .attributes = {head_dim, PadHeadDim(head_dim), scale}});
  });
}

}  // namespace
}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfstep::cpu {

HWY_EXPORT(PagedCausalAttentionImpl);
void PagedCausalAttention(const ExecContext& ctx, ConstTensor q, const KvCacheLayer& cache,
                          const PagedBatch& batch, float scale, Tensor out) {
  HWY_DYNAMIC_DISPATCH(PagedCausalAttentionImpl)(ctx, q, cache, batch, scale, out);
}

}  // namespace halfstep::cpu
#endif
