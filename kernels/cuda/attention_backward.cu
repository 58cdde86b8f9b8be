// SPDX-License-Identifier: Apache-2.0
// Attention backward: the statistics of the rows, and the gradients on tensor cores in two kernels
// without atomics: one owns keys and adds up over ascending rows of queries, one owns queries and
// adds up over ascending keys. Scores are recomputed in both, seven products instead of five, which
// is the price of sums in a fixed order.
#include "kernels/cuda/attention_backward.h"

#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_access.h"
#include "kernels/dispatch_float.h"
#include "kernels/workspace.h"

namespace halfstep::cuda {
namespace {

constexpr int kOwnRows = kAttentionWarps * kWarpRows;  // keys, or rows of queries, of a block
constexpr int kStepRows = 32;                          // of the others, at a time
constexpr int kStepTiles = kStepRows / 8;

// lse and delta, a warp per row of the queries.
template <class T>
HALFSTEP_KERNEL void ComputeStatistics(QueryRows rows, Pointer<const T> dout, Pointer<const T> out,
                                       Pointer<const float> lse, RowStatistics to) {
  const int64_t row = int64_t{BlockX()} * kAttentionWarps + Warp();
  if (row >= to.tokens * rows.heads) return;
  const int64_t token = row / rows.heads;
  const int head = static_cast<int>(row % rows.heads);
  float sum = 0;
  for (int d = Lane(); d < rows.head_dim; d += kWarpSize) {
    sum = Fma(Widen(dout[row * rows.head_dim + d]), Widen(out[row * rows.head_dim + d]), sum);
  }
  sum = WarpSum(sum);
  if (Lane() != 0) return;
  const int64_t i = (head / rows.group * to.tokens + token) * rows.group + head % rows.group;
  to.lse_log2[i] = lse[head * to.tokens + token] * kLog2E;
  to.delta[i] = sum;
}

// Two tiles of kStepRows rows (q and dout, or k and v) that come while the two before are used,
// where shared memory has room for both.
template <class T, int kWidth>
struct StepTiles {
  using Tile = SharedTile<T, kWidth>;
  static constexpr int kStages = kWidth > 128 ? 1 : 2;
  static constexpr int64_t kTileBytes = Tile::Bytes(kStepRows);
  static constexpr int64_t kBytes = 2 * kStages * kTileBytes;

  int64_t byte_offset;

  HALFSTEP_DEVICE Tile first(int step) const {
    return Tile(byte_offset + step % kStages * 2 * kTileBytes, kStepRows);
  }
  HALFSTEP_DEVICE Tile second(int step) const {
    return Tile(byte_offset + (step % kStages * 2 + 1) * kTileBytes, kStepRows);
  }
  // Returns when the tiles of `step` are there; load(s) begins to load those of step s and is also
  // called before the first step, where two fit.
  template <class Load>
  HALFSTEP_DEVICE void Arrive(int step, int end, const Load& load) const {
    if (kStages == 2) {
      WaitCopies<0>();
      SyncBlock();
      if (step + 1 < end) load(step + 1);
      CommitCopies();
    } else {
      SyncBlock();
      load(step);
      CommitCopies();
      WaitCopies<0>();
      SyncBlock();
    }
  }
};

template <class T, int kWidth>
struct OwnKeysMemory {
  static constexpr int64_t kValues = SharedTile<T, kWidth>::Bytes(kOwnRows);
  static constexpr int64_t kSteps = 2 * kValues;
  static constexpr int64_t kStatistics = kSteps + StepTiles<T, kWidth>::kBytes;
  static constexpr int64_t kBytes = kStatistics + 2 * kStepRows * int64_t{sizeof(float)} * 2;
};

// dk and dv of kOwnRows keys. The products are transposed, keys times queries, so that a warp finds
// probabilities in the registers from which the next product takes them. Grid: TileSlots of keys x
// key-value heads times column parts: a block sums up kColumns columns, what its registers hold.
template <class T, int kWidth, int kColumns>
HALFSTEP_KERNEL void OwnKeys(AttentionGradients<T> a) {
  using Tile = SharedTile<T, kWidth>;
  using Memory = OwnKeysMemory<T, kWidth>;
  const RowTile keys = FindTile(a.start, a.sequences, 1, kOwnRows, BlockX());
  if (keys.empty()) return;
  const int kv_head = BlockY() % a.kv.kv_heads;
  const int first_chunk = BlockY() / a.kv.kv_heads * (kColumns / kChunk);
  const int group = a.rows.group, lane = Lane();
  const float scale_log2 = a.scale * kLog2E;
  RowTile rows = keys;  // of the queries
  rows.rows = keys.tokens * group;

  const auto key_place = [&](auto data, int r) {
    return PlaceOfKey(data, a.kv, keys, kv_head, keys.first_row + r);
  };
  const Tile k(0, kOwnRows), v(Memory::kValues, kOwnRows);
  LoadTile<kOwnRows>(k, a.kv.head_dim, a.aligned, [&](int r) { return key_place(a.kv.keys, r); });
  LoadTile<kOwnRows>(v, a.kv.head_dim, a.aligned, [&](int r) { return key_place(a.kv.values, r); });

  // Only rows from that of the first key on see any of these keys.
  const int first_row = keys.first_row * group;
  const int end = (rows.rows - first_row + kStepRows - 1) / kStepRows;
  const StepTiles<T, kWidth> steps{Memory::kSteps};
  const auto load = [&](int step) {
    RowTile tile = rows;
    tile.first_row = first_row + step * kStepRows;
    LoadTile<kStepRows>(steps.first(step), a.rows.head_dim, a.aligned,
                        [&](int r) { return PlaceOf(a.q, a.rows, tile, kv_head, r); });
    LoadTile<kStepRows>(steps.second(step), a.rows.head_dim, a.aligned,
                        [&](int r) { return PlaceOf(a.dout, a.rows, tile, kv_head, r); });
  };
  // Of the rows of a step: lse, then delta. The first 64 threads bring a number each, one step
  // ahead: read before the products, stored behind them.
  const auto statistics = SharedMemory<float>(Memory::kStatistics, 2 * 2 * kStepRows);
  const auto read_statistic = [&](int step) {
    const int row = first_row + step * kStepRows + ThreadIndex() % kStepRows;
    if (ThreadIndex() >= 2 * kStepRows || row >= rows.rows) return 0.0f;
    const int64_t i = a.statistics.Index(kv_head, keys.begin, group, row);
    return ThreadIndex() < kStepRows ? a.statistics.lse_log2[i] : a.statistics.delta[i];
  };
  const auto store_statistic = [&](int step, float value) {
    if (ThreadIndex() >= 2 * kStepRows) return;
    statistics[step % 2 * 2 * kStepRows + ThreadIndex()] = value;
  };
  store_statistic(0, read_statistic(0));
  if (StepTiles<T, kWidth>::kStages == 2) load(0);
  CommitCopies();

  const int warp_key = Warp() * kWarpRows;
  float dk[kColumns / 8][4] = {};
  float dv[kColumns / 8][4] = {};
  for (int step = 0; step < end; ++step) {
    steps.Arrive(step, end, load);
    const float next_statistic = step + 1 < end ? read_statistic(step + 1) : 0.0f;
    const Tile q = steps.first(step), dout = steps.second(step);
    float p[kStepTiles][4] = {};
    float ds[kStepTiles][4] = {};
    AddRowProducts(k, warp_key, q, 0, p);
    AddRowProducts(v, warp_key, dout, 0, ds);
    const Pointer<float> of_step = statistics + step % 2 * 2 * kStepRows;
#pragma unroll
    for (int j = 0; j < kStepTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = j * 8 + lane % 4 * 2 + i % 2;
        const int row = first_row + step * kStepRows + r;
        const int key = keys.first_row + warp_key + lane / 4 + i / 2 * 8;
        const bool seen = key * group <= row && row < rows.rows;
        p[j][i] = seen ? Exp2Approximate(Fma(p[j][i], scale_log2, -of_step[r])) : 0.0f;
        ds[j][i] = seen ? p[j][i] * (ds[j][i] - of_step[kStepRows + r]) : 0.0f;
      }
    }
    AddWeightedRows(p, dout, first_chunk, dv);
    AddWeightedRows(ds, q, first_chunk, dk);
    store_statistic(step + 1, next_statistic);
  }

  // A warp's rows of k and v are its own, so its results go there.
  const auto store = [&](const float(&sum)[kColumns / 8][4], float factor, const Tile& through,
                         Pointer<T> to) {
    PutResults(sum, through, warp_key, first_chunk,
               [&](float value, int) { return Round<T>(value * factor); });
    SyncWarp();
    StoreTile(through, {warp_key, kWarpRows, first_chunk, kColumns / kChunk, lane, kWarpSize},
              a.kv.head_dim, a.aligned, [&](int r) { return key_place(to, r); });
  };
  SyncWarp();
  store(dv, 1.0f, v, a.dv);
  store(dk, a.scale, k, a.dk);
}

template <class T, int kWidth>
struct OwnQueriesMemory {
  static constexpr int64_t kDout = SharedTile<T, kWidth>::Bytes(kOwnRows);
  static constexpr int64_t kSteps = 2 * kDout;
  static constexpr int64_t kBytes = kSteps + StepTiles<T, kWidth>::kBytes;
};

// dq of kOwnRows rows of the queries of one key-value head. Grid: TileSlots x key-value heads times
// column parts.
template <class T, int kWidth, int kColumns>
HALFSTEP_KERNEL void OwnQueries(AttentionGradients<T> a) {
  using Tile = SharedTile<T, kWidth>;
  using Memory = OwnQueriesMemory<T, kWidth>;
  const int group = a.rows.group, lane = Lane();
  // The last tiles have the most keys, so they go first.
  const RowTile rows = FindTile(a.start, a.sequences, group, kOwnRows, GridX() - 1 - BlockX());
  if (rows.empty()) return;
  const int kv_head = BlockY() % a.kv.kv_heads;
  const int first_chunk = BlockY() / a.kv.kv_heads * (kColumns / kChunk);
  const float scale_log2 = a.scale * kLog2E;

  const Tile q(0, kOwnRows), dout(Memory::kDout, kOwnRows);
  LoadTile<kOwnRows>(q, a.rows.head_dim, a.aligned,
                     [&](int r) { return PlaceOf(a.q, a.rows, rows, kv_head, r); });
  LoadTile<kOwnRows>(dout, a.rows.head_dim, a.aligned,
                     [&](int r) { return PlaceOf(a.dout, a.rows, rows, kv_head, r); });
  const int last_row = rows.LastRow(kOwnRows);
  const int end = last_row / group / kStepRows + 1;
  const StepTiles<T, kWidth> steps{Memory::kSteps};
  const auto load = [&](int step) {
    const auto key_place = [&](Pointer<const T> data, int r) {
      return PlaceOfKey(data, a.kv, rows, kv_head, step * kStepRows + r);
    };
    LoadTile<kStepRows>(steps.first(step), a.kv.head_dim, a.aligned,
                        [&](int r) { return key_place(a.kv.keys, r); });
    LoadTile<kStepRows>(steps.second(step), a.kv.head_dim, a.aligned,
                        [&](int r) { return key_place(a.kv.values, r); });
  };
  if (StepTiles<T, kWidth>::kStages == 2) load(0);
  CommitCopies();

  const int warp_row = Warp() * kWarpRows;
  int last[2];
  float lse_log2[2], delta[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = rows.first_row + warp_row + lane / 4 + 8 * h;
    const int64_t i = a.statistics.Index(kv_head, rows.begin, group, row);
    const bool there = row < rows.rows;
    last[h] = there ? row / group : -1;
    lse_log2[h] = there ? a.statistics.lse_log2[i] : 0.0f;
    delta[h] = there ? a.statistics.delta[i] : 0.0f;
  }
  float dq[kColumns / 8][4] = {};
  for (int step = 0; step < end; ++step) {
    steps.Arrive(step, end, load);
    const Tile k = steps.first(step), v = steps.second(step);
    float p[kStepTiles][4] = {};
    float ds[kStepTiles][4] = {};
    AddRowProducts(q, warp_row, k, 0, p);
    AddRowProducts(dout, warp_row, v, 0, ds);
#pragma unroll
    for (int j = 0; j < kStepTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = step * kStepRows + j * 8 + lane % 4 * 2 + i % 2, h = i / 2;
        const float probability = Exp2Approximate(Fma(p[j][i], scale_log2, -lse_log2[h]));
        ds[j][i] = key <= last[h] ? probability * (ds[j][i] - delta[h]) : 0.0f;
      }
    }
    AddWeightedRows(ds, k, first_chunk, dq);
  }
  SyncWarp();
  PutResults(dq, q, warp_row, first_chunk,
             [&](float value, int) { return Round<T>(value * a.scale); });
  SyncWarp();
  StoreTile(q, {warp_row, kWarpRows, first_chunk, kColumns / kChunk, lane, kWarpSize},
            a.rows.head_dim, a.aligned,
            [&](int r) { return PlaceOf(a.dq, a.rows, rows, kv_head, r); });
}

template <class T, int kWidth>
void AttendBackwardOf(const ExecContext& ctx, const AttentionGradients<T>& a) {
  // What a thread's registers hold beside the scores: two sums, or one.
  constexpr int kKeyColumns = kWidth > 128 ? 64 : kWidth;
  constexpr int kQueryColumns = kWidth > 128 ? 128 : kWidth;
  const int64_t tokens = a.statistics.tokens, kv_heads = a.kv.kv_heads;
  Launch(ctx,
         {"CausalAttentionBackward of keys", TileSlots(tokens, a.sequences, 1, kOwnRows),
          kv_heads * (kWidth / kKeyColumns), kAttentionThreads,
          static_cast<size_t>(OwnKeysMemory<T, kWidth>::kBytes)},
         OwnKeys<T, kWidth, kKeyColumns>, a);
  Launch(
      ctx,
      {"CausalAttentionBackward of queries", TileSlots(tokens, a.sequences, a.rows.group, kOwnRows),
       kv_heads * (kWidth / kQueryColumns), kAttentionThreads,
       static_cast<size_t>(OwnQueriesMemory<T, kWidth>::kBytes)},
      OwnQueries<T, kWidth, kQueryColumns>, a);
}

template <class T>
void BackwardOf(const ExecContext& ctx, ConstTensor dout, const PackedAttention& in,
                ConstTensor out, ConstTensor lse, const AttentionGradients<T>& outputs) {
  HALFSTEP_CHECK_LE(in.q.dim(2), kMaxHeadDim);
  Workspace::Scope scope(ctx.workspace);
  const int64_t tokens = in.q.dim(0), heads = in.q.dim(1), width = in.q.dim(2);
  AttentionGradients<T> a = outputs;
  a.q = PointerTo<const T>(in.q);
  a.dout = PointerTo<const T>(dout);
  a.rows = {static_cast<int>(heads), static_cast<int>(heads / in.k.dim(1)),
            static_cast<int>(width)};
  a.kv.keys = PointerTo<const T>(in.k);
  a.kv.values = PointerTo<const T>(in.v);
  a.kv.kv_heads = static_cast<int>(in.k.dim(1));
  a.kv.head_dim = a.kv.row_width = static_cast<int>(width);
  a.statistics = {PointerTo<float>(scope.Take(DType::kFloat32, {tokens * heads})),
                  PointerTo<float>(scope.Take(DType::kFloat32, {tokens * heads})), tokens};
  a.start = PointerTo<const int32_t>(in.cu_seqlens);
  a.sequences = static_cast<int>(in.cu_seqlens.dim(0) - 1);
  a.scale = in.scale;
  a.aligned = RowsAreAligned(a.q, width) && RowsAreAligned(a.dout, width) &&
              RowsAreAligned(a.kv.keys, width) && RowsAreAligned(a.kv.values, width) &&
              RowsAreAligned(a.dq, width) && RowsAreAligned(a.dk, width) &&
              RowsAreAligned(a.dv, width);
  Launch(ctx,
         {"CausalAttentionBackward rows", CeilDivide(tokens * heads, kAttentionWarps), 1,
          kAttentionThreads},
         ComputeStatistics<T>, a.rows, a.dout, PointerTo<const T>(out), PointerTo<const float>(lse),
         a.statistics);
  AttendBackward(ctx, a);
}

}  // namespace

void AttendBackward(const ExecContext& ctx, const AttentionGradients<Float16>& gradients) {
  WithTileWidth(gradients.rows.head_dim,
                [&]<int kWidth>() { AttendBackwardOf<Float16, kWidth>(ctx, gradients); });
}
void AttendBackward(const ExecContext& ctx, const AttentionGradients<BFloat16>& gradients) {
  WithTileWidth(gradients.rows.head_dim,
                [&]<int kWidth>() { AttendBackwardOf<BFloat16, kWidth>(ctx, gradients); });
}

void CausalAttentionBackward(const ExecContext& ctx, ConstTensor dout, const PackedAttention& in,
                             ConstTensor out, ConstTensor lse, Tensor dq, Tensor dk, Tensor dv) {
  DispatchFloat(in.q.dtype(), [&]<class T>() {
    AttentionGradients<T> outputs{};
    outputs.dq = PointerTo<T>(dq);
    outputs.dk = PointerTo<T>(dk);
    outputs.dv = PointerTo<T>(dv);
    BackwardOf<T>(ctx, dout, in, out, lse, outputs);
  });
}

}  // namespace halfstep::cuda
