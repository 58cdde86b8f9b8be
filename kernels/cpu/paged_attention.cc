// SPDX-License-Identifier: Apache-2.0
// Causal attention over the paged cache, for prefill chunks and decoding. Items of work are query
// ranges of one sequence; a thread takes a range of items. In the fast profile a single query with
// many keys becomes several items, so that more threads than heads can share a long context, and
// probabilities stay FP32.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/parallel.h"
#include "kernels/dispatch_float.h"
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

// Blocks of keys that one item of a split query takes.
constexpr int32_t kSplitBlocks = 8;

// Queries [begin, end) of a sequence, for `heads` key-value heads from kv_head on.
struct Item {
  int32_t sequence;
  int32_t kv_head;
  int32_t heads;
  int32_t begin;
  int32_t end;
  // A split query: which of `splits` parts of the keys, and where the partial results of its rows
  // begin, in rows; splits is 1 for all others.
  int32_t split = 0;
  int32_t splits = 1;
  int64_t first_partial = 0;
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
  bool split_keys;
  float* partials = nullptr;
};

template <class T, class Visit>
void ForEachItem(const Arguments<T>& a, const Visit& visit) {
  int64_t partials = 0;
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
        Item item{s, h, std::min(together, kv_heads - h), begin, end};
        const int32_t blocks =
            (a.context[s] + static_cast<int32_t>(kBlock) - 1) / static_cast<int32_t>(kBlock);
        if (a.split_keys && queries == 1) {
          item.splits = (blocks + kSplitBlocks - 1) / kSplitBlocks;
        }
        for (item.split = 0; item.split < item.splits; ++item.split) {
          item.first_partial = partials;
          if (item.splits > 1) partials += int64_t{item.heads} * group;
          visit(item);
        }
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
  KeyRange range;
  if (item.splits > 1) {
    range.begin = static_cast<size_t>(item.split * kSplitBlocks);
    range.end = range.begin + kSplitBlocks;
    range.partial =
        a.partials + static_cast<size_t>(item.first_partial) * PartialFloats(a.attributes.padded);
  }
  return Attend<T, Heads>(Heads * rows_per_head, next_row, a.attributes, range, block, scratch);
}

// The rows of a split query from the partial results of all its items, of which `item` is the
// first.
template <class T>
size_t MergeItem(const Arguments<T>& a, const Item& item) {
  const size_t rows = static_cast<size_t>(item.heads) * a.group;
  const size_t row_floats = PartialFloats(a.attributes.padded);
  const float* const partials = a.partials + static_cast<size_t>(item.first_partial) * row_floats;
  const size_t head_dim = a.attributes.head_dim;
  T* const out = a.out +
                 static_cast<size_t>(a.start[item.sequence]) * a.kv_heads * a.group * head_dim +
                 static_cast<size_t>(item.kv_head) * a.group * head_dim;
  size_t saturated = 0;
  for (size_t r = 0; r < rows; ++r) {
    saturated += MergePartials(partials + r * row_floats, static_cast<size_t>(item.splits),
                               rows * row_floats, a.attributes, out + r * head_dim);
  }
  return saturated;
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
void PagedAttentionOf(const ExecContext& ctx, Arguments<T> a) {
  Workspace::Scope scope(ctx.workspace);
  int64_t count = 0;
  int64_t keys_read = 0;  // times heads and queries
  int64_t partials = 0;   // rows
  ForEachItem(a, [&](const Item& item) {
    ++count;
    keys_read +=
        int64_t{item.heads} * (item.end - item.begin) * a.context[item.sequence] / item.splits;
    if (item.splits > 1) partials += int64_t{item.heads} * static_cast<int64_t>(a.group);
  });
  if (count == 0) return;
  Item* const items = scope.Array<Item>(static_cast<size_t>(count));
  int64_t filled = 0;
  ForEachItem(a, [&](const Item& item) { items[filled++] = item; });
  a.partials =
      scope.Array<float>(static_cast<size_t>(partials) * PartialFloats(a.attributes.padded));
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
  if (partials == 0) return;
  size_t saturated = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (items[i].splits > 1 && items[i].split == 0) saturated += MergeItem(a, items[i]);
  }
  CountSaturated(ctx, static_cast<int64_t>(saturated));
}

void PagedCausalAttentionImpl(const ExecContext& ctx, ConstTensor q, const KvCacheLayer& cache,
                              const PagedBatch& batch, float scale, Tensor out) {
  const size_t head_dim = static_cast<size_t>(cache.head_dim);
  const bool fast = ctx.profile == Profile::kFast;
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
                              .attributes = {head_dim, PadHeadDim(head_dim), scale, !fast},
                              .split_keys = fast});
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
