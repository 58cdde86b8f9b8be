// SPDX-License-Identifier: Apache-2.0
// Causal attention on tensor cores. One recurrence in two kernels that give a row the same bits:
// * many rows: each of four warps takes 16 rows of a tile of 64 and all keys of a block;
// * few rows (decoding): the four warps share 16 rows; a warp takes 16 of the 64 keys for the
//   scores and a part of the columns for the sums, so that a block reads the keys only once from
//   shared memory, and is bound by the memory that holds the cache.
// The order of every sum is that of the key blocks, of the k16 steps of the matrix instruction, and
// for the total ((g0 + g1) + (g2 + g3)) over the groups of 16 keys, lane by lane. A key that a row
// does not see has probability 0, which changes nothing but perhaps the sign of a zero; that is
// removed at the end.
#include "kernels/cuda/attention_forward.h"

#include <algorithm>

#include "kernels/cuda/attention_key_blocks.h"
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.h"

namespace halfstep::cuda {
namespace {

constexpr int kManyRows = kAttentionWarps * kWarpRows;
constexpr int kFewRows = kWarpRows;
constexpr int kKeyTiles = kKeyBlock / 8;
static_assert(kKeyBlock == kAttentionWarps * 16);

HALFSTEP_DEVICE bool HasFewRows(const RowTile& rows) {
  return rows.tokens == 1 || rows.rows <= kFewRows;
}

// The log-sum-exp of a row, where it is asked for, by one of the lanes that share the row.
template <class T>
HALFSTEP_DEVICE void StoreLse(const AttentionArguments<T>& a, const RowTile& rows, int kv_head,
                              int row, float largest, float total) {
  if (a.lse.empty() || row >= rows.rows || Lane() % 4 != 0) return;
  const int64_t head = kv_head * a.rows.group + row % a.rows.group;
  a.lse[head * a.tokens + rows.begin + row / a.rows.group] = Fma(largest, kLogOf2, Log(total));
}

// Sets the scores of keys from first_key on that lie behind the last one of their row to -inf.
template <int kTiles>
HALFSTEP_DEVICE void MaskScores(int first_key, const int (&last)[2], float (&score)[kTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = first_key + j * 8 + Lane() % 4 * 2 + i % 2;
      if (key > last[i / 2]) score[j][i] = -BitsToFloat(0x7f800000);
    }
  }
}

// The largest of this lane's scores of half `h`.
template <int kTiles>
HALFSTEP_DEVICE float LargestScore(const float (&score)[kTiles][4], int h) {
  float largest = score[0][2 * h];
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    largest = Larger(Larger(largest, score[j][2 * h]), score[j][2 * h + 1]);
  }
  return largest;
}

// Turns the scores of a group of 16 keys into probabilities relative to `largest`; returns the sum
// of this lane's.
HALFSTEP_DEVICE float Exponentiate(float scale_log2, float largest, int h, float (&low)[4],
                                   float (&high)[4]) {
  for (float* score : {&low[2 * h], &low[2 * h + 1], &high[2 * h], &high[2 * h + 1]}) {
    *score = Exp2Approximate(Fma(*score, scale_log2, -largest));
  }
  return (low[2 * h] + low[2 * h + 1]) + (high[2 * h] + high[2 * h + 1]);
}

template <class T, int kWidth>
constexpr int64_t kManyRowsBytes =
    SharedTile<T, kWidth>::Bytes(kManyRows) + KeyBlocks<T, kWidth>::kBytes;

// Grid: TileSlots with kManyRows x key-value heads. `few_elsewhere`: sequences with few rows are
// left to AttendFewRows.
template <class T, int kWidth>
HALFSTEP_KERNEL void AttendManyRows(AttentionArguments<T> a, bool few_elsewhere) {
  using Tile = SharedTile<T, kWidth>;
  const int group = a.rows.group;
  // The last tiles have the most keys, so they go first.
  const RowTile rows = FindTile(a.start, a.sequences, group, kManyRows, GridX() - 1 - BlockX());
  if (rows.empty() || (few_elsewhere && HasFewRows(rows))) return;
  const int kv_head = BlockY();
  const int context = a.Context(rows.sequence, rows.tokens);
  const int before = context - rows.tokens;  // keys before those of the queries

  const Tile q(0, kManyRows);
  LoadTile<kManyRows>(q, a.rows.head_dim, a.q_aligned,
                      [&](int r) { return PlaceOf(a.q, a.rows, rows, kv_head, r); });
  const int first_position = before + rows.first_row / group;
  const int last_row = rows.LastRow(kManyRows);
  const int end = (before + last_row / group) / kKeyBlock + 1;
  KeyBlocks<T, kWidth> blocks(a, Tile::Bytes(kManyRows), rows.sequence, rows.begin, context);
  blocks.Start(kv_head, 0, end);

  const int warp_row = Warp() * kWarpRows;
  int row[2], last[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    row[h] = rows.first_row + warp_row + Lane() / 4 + 8 * h;
    last[h] = before + (row[h] < rows.rows ? row[h] : last_row) / group;
  }
  SoftmaxRow state[2];
  float sum[kWidth / 8][4] = {};
  for (int block = 0; block < end; ++block) {
    blocks.Arrive(block);
    float score[kKeyTiles][4] = {};
    AddRowProducts(q, warp_row, blocks.keys(block), 0, score);
    if ((block + 1) * kKeyBlock > first_position) MaskScores(block * kKeyBlock, last, score);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float largest =
          Larger(state[h].largest, QuadMax(LargestScore(score, h)) * a.scale_log2);
      const float alpha = Exp2Approximate(state[h].largest - largest);
      state[h].largest = largest;
      float total[4];
#pragma unroll
      for (int g = 0; g < 4; ++g) {
        total[g] = Exponentiate(a.scale_log2, largest, h, score[2 * g], score[2 * g + 1]);
      }
      state[h].total = Fma(state[h].total, alpha, (total[0] + total[1]) + (total[2] + total[3]));
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) {
        sum[n][2 * h] *= alpha;
        sum[n][2 * h + 1] *= alpha;
      }
    }
    AddWeightedRows(score, blocks.values(block), 0, sum);
  }

  // A warp's rows of q are its own, so its results go there.
  float inverse[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float total = QuadSum(state[h].total);
    inverse[h] = 1.0f / total;
    StoreLse(a, rows, kv_head, row[h], state[h].largest, total);
  }
  int saturated = 0;
  SyncWarp();
  PutResults(sum, q, warp_row, 0, [&](float value, int h) {
    if (row[h] >= rows.rows) return T{};
    return RoundSaturated<T>(value * inverse[h] + 0.0f, saturated);
  });
  SyncWarp();
  StoreTile(q, {warp_row, kWarpRows, 0, Tile::kChunks, Lane(), kWarpSize}, a.rows.head_dim,
            a.q_aligned, [&](int r) { return PlaceOf(a.out, a.rows, rows, kv_head, r); });
  CountSaturated(a.saturation, saturated);
}

template <class T, int kWidth>
struct FewRowsMemory {
  static constexpr int64_t kKeys = SharedTile<T, kWidth>::Bytes(kFewRows);
  static constexpr int64_t kProbabilities = kKeys + KeyBlocks<T, kWidth>::kBytes;
  static constexpr int64_t kLargest = kProbabilities + SharedTile<T, kKeyBlock>::Bytes(kFewRows);
  static constexpr int64_t kTotals = kLargest + kAttentionWarps * kFewRows * 4;
  static constexpr int64_t kBytes = kTotals + kAttentionWarps * kFewRows * 4 * 4;
};

// A part of the keys for a tile of kFewRows rows of one key-value head.
struct FewRowsWork {
  RowTile rows;
  int kv_head;
  int context;
  int part;
  int parts;
};

// Leaves the results of a warp's columns for MergeParts.
template <class T, int kPairs>
HALFSTEP_DEVICE void KeepPart(const AttentionArguments<T>& a, const FewRowsWork& work,
                              const SoftmaxRow (&state)[2], const float (&sum)[kPairs][2][4]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float total = QuadSum(state[h].total);
    const int row = work.rows.first_row + Lane() / 4 + 8 * h;
    if (row >= work.rows.rows) continue;
    const int head = work.kv_head * a.rows.group + row;
    const Pointer<float> to =
        a.split.partials + a.split.Offset(work.rows.sequence, work.part, a.rows.heads, head);
    const int width = a.split.row_floats - 2;
#pragma unroll
    for (int n = 0; n < 2 * kPairs; ++n) {
      const int column = (2 * (Warp() + n / 2 * kAttentionWarps) + n % 2) * 8 + Lane() % 4 * 2;
      if (column < width) {
        to[column] = sum[n / 2][n % 2][2 * h];
        to[column + 1] = sum[n / 2][n % 2][2 * h + 1];
      }
    }
    if (Warp() == 0 && Lane() % 4 == 0) {
      to[width] = state[h].largest;
      to[width + 1] = total;
    }
  }
}

template <class T, int kWidth>
HALFSTEP_DEVICE void AttendFewRowsTile(const AttentionArguments<T>& a, const FewRowsWork& work) {
  using Tile = SharedTile<T, kWidth>;
  using Memory = FewRowsMemory<T, kWidth>;
  // Pairs of column tiles that a warp sums up: the i-th is pair warp + 4 i.
  constexpr int kPairs = (kWidth / 16 + kAttentionWarps - 1) / kAttentionWarps;
  const RowTile& rows = work.rows;
  const int group = a.rows.group, lane = Lane();
  const int before = work.context - rows.tokens;

  const Tile q(0, kFewRows);
  LoadTile<kFewRows>(q, a.rows.head_dim, a.q_aligned,
                     [&](int r) { return PlaceOf(a.q, a.rows, rows, work.kv_head, r); });
  const int last_row = rows.LastRow(kFewRows);
  int begin = 0;
  int end = (before + last_row / group) / kKeyBlock + 1;
  if (work.parts > 1) {
    begin = work.part * a.split.blocks;
    if (begin + a.split.blocks < end) end = begin + a.split.blocks;
  }
  KeyBlocks<T, kWidth> blocks(a, Memory::kKeys, rows.sequence, rows.begin, work.context);
  blocks.Start(work.kv_head, begin, end);
  const SharedTile<T, kKeyBlock> probabilities(Memory::kProbabilities, kFewRows);
  const auto largest_of = SharedMemory<float>(Memory::kLargest, kAttentionWarps * kFewRows);
  const auto totals_of = SharedMemory<float>(Memory::kTotals, kAttentionWarps * kFewRows * 4);

  int last[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = rows.first_row + lane / 4 + 8 * h;
    last[h] = before + (row < rows.rows ? row : last_row) / group;
  }
  SoftmaxRow state[2];
  float sum[kPairs][2][4] = {};
  for (int block = begin; block < end; ++block) {
    blocks.Arrive(block);
    float score[2][4] = {};
    AddRowProducts(q, 0, blocks.keys(block), Warp() * 16, score);
    MaskScores(block * kKeyBlock + Warp() * 16, last, score);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float largest = QuadMax(LargestScore(score, h));
      if (lane % 4 == 0) largest_of[Warp() * kFewRows + lane / 4 + 8 * h] = largest;
    }
    SyncBlock();
    float alpha[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = lane / 4 + 8 * h;
      float largest = largest_of[r];
#pragma unroll
      for (int w = 1; w < kAttentionWarps; ++w) {
        largest = Larger(largest, largest_of[w * kFewRows + r]);
      }
      largest = Larger(state[h].largest, largest * a.scale_log2);
      alpha[h] = Exp2Approximate(state[h].largest - largest);
      state[h].largest = largest;
      totals_of[(Warp() * kFewRows + r) * 4 + lane % 4] =
          Exponentiate(a.scale_log2, largest, h, score[0], score[1]);
    }
    PutResults(score, probabilities, 0, Warp() * 2,
               [](float value, int) { return Round<T>(value); });
    SyncBlock();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float total[kAttentionWarps];
#pragma unroll
      for (int w = 0; w < kAttentionWarps; ++w) {
        total[w] = totals_of[(w * kFewRows + lane / 4 + 8 * h) * 4 + lane % 4];
      }
      state[h].total = Fma(state[h].total, alpha[h], (total[0] + total[1]) + (total[2] + total[3]));
#pragma unroll
      for (int n = 0; n < 2 * kPairs; ++n) {
        sum[n / 2][n % 2][2 * h] *= alpha[h];
        sum[n / 2][n % 2][2 * h + 1] *= alpha[h];
      }
    }
    const Tile values = blocks.values(block);
#pragma unroll
    for (int k = 0; k < kKeyBlock / 16; ++k) {
      uint32_t p[4];
      LoadMatrix4<T>(p, probabilities.At(lane % 16, 2 * k + lane / 16));
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const int chunk = 2 * (Warp() + i * kAttentionWarps);
        if (chunk >= Tile::kChunks) continue;
        uint32_t v[4];
        LoadMatrix4Transposed<T>(v, values.At(k * 16 + lane % 16, chunk + lane / 16));
        MultiplyPair<T>(sum[i][0], sum[i][1], p, v);
      }
    }
  }

  if (work.parts > 1) {
    KeepPart(a, work, state, sum);
    return;
  }
  int saturated = 0;
  float inverse[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float total = QuadSum(state[h].total);
    inverse[h] = 1.0f / total;
    if (Warp() == 0) {
      StoreLse(a, rows, work.kv_head, rows.first_row + lane / 4 + 8 * h, state[h].largest, total);
    }
  }
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int chunk = 2 * (Warp() + i * kAttentionWarps);
    if (chunk >= Tile::kChunks) continue;
    PutResults(sum[i], q, 0, chunk, [&](float value, int h) {
      if (rows.first_row + lane / 4 + 8 * h >= rows.rows) return T{};
      return RoundSaturated<T>(value * inverse[h] + 0.0f, saturated);
    });
  }
  SyncBlock();
  StoreTile(q, {0, kFewRows, 0, Tile::kChunks, ThreadIndex(), kAttentionThreads}, a.rows.head_dim,
            a.q_aligned, [&](int r) { return PlaceOf(a.out, a.rows, rows, work.kv_head, r); });
  CountSaturated(a.saturation, saturated);
}

// Grid: sequences times `tiles` x key-value heads times parts; a block takes every `tiles`-th tile
// of its sequence. `many_elsewhere`: sequences with many rows are left to AttendManyRows.
template <class T, int kWidth>
HALFSTEP_KERNEL void AttendFewRows(AttentionArguments<T> a, int tiles, bool many_elsewhere) {
  FewRowsWork work;
  work.rows.sequence = BlockX() / tiles;
  work.rows.begin = a.start[work.rows.sequence];
  work.rows.tokens = a.start[work.rows.sequence + 1] - work.rows.begin;
  work.rows.rows = work.rows.tokens * a.rows.group;
  if (many_elsewhere && !HasFewRows(work.rows)) return;
  work.kv_head = BlockY() % a.kv.kv_heads;
  work.context = a.Context(work.rows.sequence, work.rows.tokens);
  work.part = BlockY() / a.kv.kv_heads;
  work.parts = a.split.Parts(work.rows.tokens, work.context);
  if (work.part >= work.parts) return;
  for (work.rows.first_row = BlockX() % tiles * kFewRows; !work.rows.empty();
       work.rows.first_row += tiles * kFewRows) {
    AttendFewRowsTile<T, kWidth>(a, work);
    SyncBlock();
  }
}

template <class T, int kWidth>
void AttendOf(const ExecContext& ctx, const AttentionArguments<T>& a) {
  const int64_t kv_heads = a.kv.kv_heads;
  const bool paged = !a.context.empty();
  // Wider rows leave no registers for AttendManyRows.
  constexpr bool kHasManyRows = kWidth <= 128;
  const bool many = kHasManyRows && !(paged && a.tokens <= a.sequences);
  if (paged || !kHasManyRows) {
    int64_t tiles = CeilDivide(a.rows.group, kFewRows);  // of a single query
    if (!kHasManyRows) {
      const int64_t average = CeilDivide(a.tokens, std::max(a.sequences, 1));
      tiles = CeilDivide(average * a.rows.group, kFewRows);
    }
    Launch(ctx,
           {"CausalAttention of few rows", a.sequences * tiles, kv_heads * a.split.most,
            kAttentionThreads, static_cast<size_t>(FewRowsMemory<T, kWidth>::kBytes)},
           AttendFewRows<T, kWidth>, a, static_cast<int>(tiles), many);
  }
  if constexpr (kHasManyRows) {
    if (!many) return;
    Launch(
        ctx,
        {"CausalAttention of many rows", TileSlots(a.tokens, a.sequences, a.rows.group, kManyRows),
         kv_heads, kAttentionThreads, static_cast<size_t>(kManyRowsBytes<T, kWidth>)},
        AttendManyRows<T, kWidth>, a, paged);
  }
}

}  // namespace

void Attend(const ExecContext& ctx, const AttentionArguments<Float16>& arguments) {
  WithTileWidth(arguments.rows.head_dim,
                [&]<int kWidth>() { AttendOf<Float16, kWidth>(ctx, arguments); });
}
void Attend(const ExecContext& ctx, const AttentionArguments<BFloat16>& arguments) {
  WithTileWidth(arguments.rows.head_dim,
                [&]<int kWidth>() { AttendOf<BFloat16, kWidth>(ctx, arguments); });
}

}  // namespace halfstep::cuda
