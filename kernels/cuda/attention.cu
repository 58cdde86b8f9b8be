// SPDX-License-Identifier: Apache-2.0
// The forward operations of attention: what they ask of the kernels of attention_forward.cu and
// attention_float.cu, and the merge of split keys.
#include <algorithm>

#include "kernels/cuda/attention_forward.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_access.h"
#include "kernels/dispatch_float.h"
#include "kernels/workspace.h"

namespace halfstep::cuda {
namespace {

// In the fast profile keys are split while fewer blocks than this have work: about four for each
// multiprocessor of a large chip. A part has at least kSplitBlocks key blocks, and there are at
// most kMostParts of them, which bounds the memory of partial results.
constexpr int64_t kBusyBlocks = 512;
constexpr int64_t kSplitBlocks = 4;
constexpr int64_t kMostParts = 32;

constexpr int kMergeWarps = 4;

// The output of single queries whose keys were split: a warp per sequence and head, parts in
// ascending order.
template <class T>
HALFSTEP_KERNEL void MergeParts(AttentionArguments<T> a) {
  const int64_t item = int64_t{BlockX()} * kMergeWarps + Warp();
  const int heads = a.rows.heads;
  if (item >= int64_t{a.sequences} * heads) return;
  const int sequence = static_cast<int>(item / heads), head = static_cast<int>(item % heads);
  const int begin = a.start[sequence];
  const int tokens = a.start[sequence + 1] - begin;
  const int parts = a.split.Parts(tokens, a.Context(sequence, tokens));
  if (parts == 1) return;
  const int width = a.split.row_floats - 2;
  const auto part_at = [&](int part) {
    return a.split.partials + a.split.Offset(sequence, part, heads, head);
  };
  float largest = part_at(0)[width];
  for (int part = 1; part < parts; ++part) {
    const float other = part_at(part)[width];
    largest = other > largest ? other : largest;
  }
  const auto weight = [&](int part) { return Exp2Approximate(part_at(part)[width] - largest); };
  float total = 0;
  for (int part = 0; part < parts; ++part) {
    total = Fma(weight(part), part_at(part)[width + 1], total);
  }
  const Pointer<T> to = a.out + (int64_t{begin} * heads + head) * a.rows.head_dim;
  int saturated = 0;
  for (int d = Lane(); d < a.rows.head_dim; d += kWarpSize) {
    float sum = 0;
    for (int part = 0; part < parts; ++part) sum = Fma(weight(part), part_at(part)[d], sum);
    to[d] = RoundSaturated<T>(sum / total, saturated);
  }
  CountSaturated(a.saturation, saturated);
}

template <class T>
AttentionArguments<T> Arguments(const ExecContext& ctx, ConstTensor q, Tensor out,
                                int64_t kv_heads) {
  HALFSTEP_CHECK_LE(q.dim(2), kMaxHeadDim);
  AttentionArguments<T> a{};
  a.q = PointerTo<const T>(q);
  a.out = PointerTo<T>(out);
  a.tokens = static_cast<int>(q.dim(0));
  a.rows = {static_cast<int>(q.dim(1)), static_cast<int>(q.dim(1) / kv_heads),
            static_cast<int>(q.dim(2))};
  a.kv.kv_heads = static_cast<int>(kv_heads);
  a.kv.head_dim = a.rows.head_dim;
  a.q_aligned = RowsAreAligned(a.q, q.dim(2)) && RowsAreAligned(a.out, q.dim(2));
  a.saturation = SaturationCounter(ctx);
  return a;
}

template <class T>
void AttendPacked(const ExecContext& ctx, const PackedAttention& in, Tensor out, Tensor lse) {
  AttentionArguments<T> a = Arguments<T>(ctx, in.q, out, in.k.dim(1));
  a.lse = PointerTo<float>(lse);
  a.kv.keys = PointerTo<const T>(in.k);
  a.kv.values = PointerTo<const T>(in.v);
  a.kv.row_width = a.kv.head_dim;
  a.kv_aligned =
      RowsAreAligned(a.kv.keys, a.kv.row_width) && RowsAreAligned(a.kv.values, a.kv.row_width);
  a.start = PointerTo<const int32_t>(in.cu_seqlens);
  a.sequences = static_cast<int>(in.cu_seqlens.dim(0) - 1);
  a.scale_log2 = in.scale * kLog2E;
  Attend(ctx, a);
}

template <class T>
Pointer<const T> CacheRows(ConstTensor blocks) {
  HALFSTEP_CHECK(blocks.device().type == DeviceType::kCuda);
  return Pointer<const T>(static_cast<const T*>(blocks.data()),
                          static_cast<int64_t>(blocks.bytes() / sizeof(T)));
}

template <class T>
void AttendPaged(const ExecContext& ctx, ConstTensor q, const KvCacheLayer& cache,
                 const PagedBatch& batch, float scale, Tensor out) {
  AttentionArguments<T> a = Arguments<T>(ctx, q, out, cache.kv_heads);
  a.kv.keys = CacheRows<T>(cache.keys);
  a.kv.values = CacheRows<T>(cache.values);
  a.kv.row_width = static_cast<int>(CacheRowWidth(cache.head_dim));
  a.kv.tables = PointerTo<const int32_t>(batch.block_tables);
  a.kv.max_blocks = static_cast<int>(batch.block_tables.dim(1));
  a.kv_aligned =
      RowsAreAligned(a.kv.keys, a.kv.row_width) && RowsAreAligned(a.kv.values, a.kv.row_width);
  a.start = PointerTo<const int32_t>(batch.query_start);
  a.context = PointerTo<const int32_t>(batch.context);
  a.sequences = static_cast<int>(batch.context.dim(0));
  a.scale_log2 = scale * kLog2E;

  Workspace::Scope scope(ctx.workspace);
  const int64_t key_blocks = CeilDivide(batch.block_tables.dim(1) * kKvBlockTokens, kKeyBlock);
  if (ctx.profile == Profile::kFast && int64_t{a.sequences} * cache.kv_heads < kBusyBlocks) {
    const int64_t blocks = std::max(kSplitBlocks, CeilDivide(key_blocks, kMostParts));
    const int64_t parts = std::max<int64_t>(CeilDivide(key_blocks, blocks), 1);
    if (parts > 1) {
      const int64_t row_floats = CacheRowWidth(cache.head_dim) + 2;
      const int64_t floats = a.sequences * parts * a.rows.heads * row_floats;
      a.split = {static_cast<int>(parts), static_cast<int>(blocks),
                 Pointer<float>(scope.Array<float>(static_cast<size_t>(floats)), floats),
                 static_cast<int>(row_floats)};
    }
  }
  Attend(ctx, a);
  if (a.split.most > 1) {
    const int64_t items = int64_t{a.sequences} * a.rows.heads;
    Launch(ctx,
           {"CausalAttention merge", CeilDivide(items, kMergeWarps), 1, kMergeWarps * kWarpSize},
           MergeParts<T>, a);
  }
}

}  // namespace

void CausalAttention(const ExecContext& ctx, const PackedAttention& in, Tensor out, Tensor lse) {
  DispatchFloat(in.q.dtype(), [&]<class T>() { AttendPacked<T>(ctx, in, out, lse); });
}

void PagedCausalAttention(const ExecContext& ctx, ConstTensor q, const KvCacheLayer& cache,
                          const PagedBatch& batch, float scale, Tensor out) {
  DispatchFloat(q.dtype(), [&]<class T>() { AttendPaged<T>(ctx, q, cache, batch, scale, out); });
}

}  // namespace halfstep::cuda
