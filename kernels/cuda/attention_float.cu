// SPDX-License-Identifier: Apache-2.0
// Causal attention of FP32 rows, for correctness rather than speed: a warp per row, a lane per key
// for the scores and a lane per column for the sums. A row reads its own keys only.
#include "kernels/cuda/attention_float.h"

#include "kernels/cuda/attention_backward.h"
#include "kernels/cuda/attention_forward.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.h"

namespace halfstep::cuda {
namespace {

constexpr int kRowTile = kFloatWarps;

// Grid: TileSlots with kRowTile x key-value heads times parts.
HALFSTEP_KERNEL void AttendFloatRows(AttentionArguments<float> a) {
  const int group = a.rows.group;
  const RowTile rows = FindTile(a.start, a.sequences, group, kRowTile, GridX() - 1 - BlockX());
  const int row = rows.first_row + Warp();
  if (row >= rows.rows) return;
  const int kv_head = BlockY() % a.kv.kv_heads, part = BlockY() / a.kv.kv_heads;
  const int context = a.Context(rows.sequence, rows.tokens);
  const int parts = a.split.Parts(rows.tokens, context);
  if (part >= parts) return;
  constexpr int kPage = static_cast<int>(kKvBlockTokens);
  static_assert(kPage == kWarpSize);
  const int position = context - rows.tokens + row / group;
  const int pages = position / kPage + 1;
  int begin = 0, end = pages;
  if (parts > 1) {
    const int blocks = a.split.blocks * (kKeyBlock / kPage);
    begin = part * blocks;
    end = begin + blocks < pages ? begin + blocks : pages;
  }

  const Pointer<const float> q = a.q + a.rows.Offset(rows.begin, kv_head, row);
  SoftmaxRow state;
  FloatColumns sum;
  for (int block = begin; block < end; ++block) {
    const int page = a.kv.Page(rows.sequence, block, pages);
    const int seen = position + 1 - block * kPage;
    const int keys = seen < kPage ? seen : kPage;
    const auto offset = [&](int key) {
      return a.kv.Offset(page, rows.begin, kv_head, block * kPage + key);
    };
    float p = -BitsToFloat(0x7f800000);
    if (Lane() < keys) p = Dot(q, a.kv.keys + offset(Lane()), a.rows.head_dim);
    const float highest = WarpMax(p) * a.scale_log2;
    const float largest = highest > state.largest ? highest : state.largest;
    const float alpha = Exp2Approximate(state.largest - largest);
    state.largest = largest;
    p = Exp2Approximate(Fma(p, a.scale_log2, -largest));
    state.total = Fma(state.total, alpha, WarpSum(p));
    sum.Scale(alpha);
    for (int key = 0; key < keys; ++key) {
      sum.Add(Shuffle(p, key), a.kv.values + offset(key), a.rows.head_dim);
    }
  }

  if (parts > 1) {
    const int head = kv_head * group + row % group;
    const Pointer<float> to =
        a.split.partials + a.split.Offset(rows.sequence, part, a.rows.heads, head);
    sum.Store(1.0f, to, a.rows.head_dim);
    if (Lane() == 0) {
      to[a.split.row_floats - 2] = state.largest;
      to[a.split.row_floats - 1] = state.total;
    }
    return;
  }
  sum.Store(1.0f / state.total, a.out + a.rows.Offset(rows.begin, kv_head, row), a.rows.head_dim);
  if (!a.lse.empty() && Lane() == 0) {
    const int64_t head = kv_head * group + row % group;
    a.lse[head * a.tokens + rows.begin + row / group] =
        Fma(state.largest, kLogOf2, Log(state.total));
  }
}

// What a lane finds out about one query and one key.
struct Gradient {
  float p = 0;
  float ds = 0;
};
HALFSTEP_DEVICE Gradient GradientOf(const AttentionGradients<float>& a, int64_t query, int64_t key,
                                    int64_t statistic) {
  const int width = a.rows.head_dim;
  const float score = Dot(a.q + query, a.kv.keys + key, width);
  const float dp = Dot(a.dout + query, a.kv.values + key, width);
  Gradient g;
  g.p = Exp2Approximate(Fma(score, a.scale * kLog2E, -a.statistics.lse_log2[statistic]));
  g.ds = g.p * (dp - a.statistics.delta[statistic]);
  return g;
}

// dq, a warp per row. Grid: TileSlots with kRowTile x key-value heads.
HALFSTEP_KERNEL void OwnFloatQueries(AttentionGradients<float> a) {
  const int group = a.rows.group, kv_head = BlockY();
  const RowTile rows = FindTile(a.start, a.sequences, group, kRowTile, GridX() - 1 - BlockX());
  const int row = rows.first_row + Warp();
  if (row >= rows.rows) return;
  const int64_t query = a.rows.Offset(rows.begin, kv_head, row);
  const int64_t statistic = a.statistics.Index(kv_head, rows.begin, group, row);
  const int keys = row / group + 1;
  FloatColumns dq;
  for (int first = 0; first < keys; first += kWarpSize) {
    const auto key_at = [&](int i) { return a.kv.Offset(0, rows.begin, kv_head, first + i); };
    const int count = keys - first < kWarpSize ? keys - first : kWarpSize;
    Gradient g;
    if (Lane() < count) g = GradientOf(a, query, key_at(Lane()), statistic);
    for (int i = 0; i < count; ++i) {
      dq.Add(Shuffle(g.ds, i), a.kv.keys + key_at(i), a.rows.head_dim);
    }
  }
  dq.Store(a.scale, a.dq + query, a.rows.head_dim);
}

// dk and dv, a warp per key. Grid: TileSlots of keys with kRowTile x key-value heads.
HALFSTEP_KERNEL void OwnFloatKeys(AttentionGradients<float> a) {
  const int group = a.rows.group, kv_head = BlockY();
  const RowTile keys = FindTile(a.start, a.sequences, 1, kRowTile, BlockX());
  const int key_row = keys.first_row + Warp();
  if (key_row >= keys.rows) return;
  const int64_t key = a.kv.Offset(0, keys.begin, kv_head, key_row);
  const int rows = keys.tokens * group;
  FloatColumns dk, dv;
  for (int first = key_row * group; first < rows; first += kWarpSize) {
    const int count = rows - first < kWarpSize ? rows - first : kWarpSize;
    const auto query_at = [&](int i) { return a.rows.Offset(keys.begin, kv_head, first + i); };
    Gradient g;
    if (Lane() < count) {
      g = GradientOf(a, query_at(Lane()), key,
                     a.statistics.Index(kv_head, keys.begin, group, first + Lane()));
    }
    for (int i = 0; i < count; ++i) {
      const int64_t query = query_at(i);
      dv.Add(Shuffle(g.p, i), a.dout + query, a.rows.head_dim);
      dk.Add(Shuffle(g.ds, i), a.q + query, a.rows.head_dim);
    }
  }
  dk.Store(a.scale, a.dk + key, a.rows.head_dim);
  dv.Store(1.0f, a.dv + key, a.rows.head_dim);
}

}  // namespace

void Attend(const ExecContext& ctx, const AttentionArguments<float>& arguments) {
  const AttentionArguments<float>& a = arguments;
  Launch(ctx,
         {"CausalAttention FP32", TileSlots(a.tokens, a.sequences, a.rows.group, kRowTile),
          int64_t{a.kv.kv_heads} * a.split.most, kFloatWarps * kWarpSize},
         AttendFloatRows, a);
}

void AttendBackward(const ExecContext& ctx, const AttentionGradients<float>& gradients) {
  const AttentionGradients<float>& a = gradients;
  const int64_t tokens = a.statistics.tokens, kv_heads = a.kv.kv_heads;
  constexpr int kThreads = kFloatWarps * kWarpSize;
  Launch(ctx,
         {"CausalAttentionBackward of keys, FP32", TileSlots(tokens, a.sequences, 1, kRowTile),
          kv_heads, kThreads},
         OwnFloatKeys, a);
  Launch(ctx,
         {"CausalAttentionBackward of queries, FP32",
          TileSlots(tokens, a.sequences, a.rows.group, kRowTile), kv_heads, kThreads},
         OwnFloatQueries, a);
}

}  // namespace halfstep::cuda
