// SPDX-License-Identifier: Apache-2.0
// Token embedding: row copies forward. Backward sorts the tokens by id, stably, so that each row of
// the table is one chain of sums over its tokens in ascending order; no two threads add to the same
// element.
#include "kernels/ops/embedding.h"

#include "kernels/cuda/backend.h"
#include "kernels/cuda/copy_rows.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.h"
#include "kernels/cuda/row_access.h"
#include "kernels/dispatch_float.h"
#include "kernels/workspace.h"

namespace halfstep::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;

struct Extent {
  int64_t tokens;
  int64_t vocabulary;
  int64_t width;
};

// y = table[token] in FP32, NaN for a token outside the table.
template <bool aligned, class T>
HALFSTEP_KERNEL void WidenRows(Extent extent, Pointer<const int32_t> tokens, Pointer<const T> table,
                               Pointer<float> y) {
  const int64_t t = int64_t{BlockX()} * kWarps + Warp();
  if (t >= extent.tokens) return;
  const int64_t token = tokens[t];
  const bool valid = token >= 0 && token < extent.vocabulary;
  for (int64_t i = Lane() * kGroup; i < extent.width; i += kWarpSize * kGroup) {
    float v[kGroup];
    if (valid) {
      LoadGroup<aligned>(table, token * extent.width + i, extent.width - i, v);
    } else {
#pragma unroll
      for (int j = 0; j < kGroup; ++j) v[j] = QuietNaN();
    }
    StoreGroup<aligned>(y, t * extent.width + i, extent.width - i, v,
                        [](float value) { return value; });
  }
}

template <class T>
void WidenOf(const ExecContext& ctx, ConstTensor tokens, ConstTensor table, Tensor y) {
  const Extent extent{tokens.dim(0), table.dim(0), table.dim(1)};
  const auto from = PointerTo<const T>(table);
  const auto to = PointerTo<float>(y);
  const bool aligned = RowsAreAligned(from, extent.width) && RowsAreAligned(to, extent.width);
  Launch(ctx, {"Embedding", CeilDivide(extent.tokens, kWarps), 1, kThreads},
         aligned ? WidenRows<true, T> : WidenRows<false, T>, extent,
         PointerTo<const int32_t>(tokens), from, to);
}

// The tokens sorted by id, those of equal id in their order.
struct SortedTokens {
  Pointer<int32_t> id;
  Pointer<int32_t> at;  // where in the list of tokens it was
};

// A block of the sort; 128 blocks for 16384 tokens.
constexpr int kTile = 128;
static_assert(kTile % Pack<int32_t>::kCount == 0);

// A thread per token counts those that come before it. Work grows with the square of the number of
// tokens, but what is counted comes from shared memory: 16384 tokens take some 0.1 ms by
// calculation, about what the launches of a radix sort would. Ids are compared as unsigned, so that
// those outside any table come last.
HALFSTEP_KERNEL void SortTokens(int64_t count, Pointer<const int32_t> tokens, SortedTokens sorted) {
  const Pointer<uint32_t> tile = SharedMemory<uint32_t>(0, kTile);
  const int64_t t = int64_t{BlockX()} * kTile + ThreadIndex();
  const uint32_t id = t < count ? static_cast<uint32_t>(tokens[t]) : 0;
  int before = 0;
  for (int64_t first = 0; first < count; first += kTile) {
    const int64_t own = first + ThreadIndex();
    SyncBlock();
    // Beyond the end an id before which nothing comes.
    tile[ThreadIndex()] = own < count ? static_cast<uint32_t>(tokens[own]) : 0xffffffff;
    SyncBlock();
    for (int i = 0; i < kTile; i += Pack<uint32_t>::kCount) {
      const Pack<uint32_t> other = LoadPack(Pointer<const uint32_t>(tile), i);
#pragma unroll
      for (int j = 0; j < Pack<uint32_t>::kCount; ++j) {
        const bool earlier = first + i + j < t;
        before += other.values[j] < id || (earlier && other.values[j] == id) ? 1 : 0;
      }
    }
  }
  if (t < count) {
    sorted.id[before] = static_cast<int32_t>(id);
    sorted.at[before] = static_cast<int32_t>(t);
  }
}

// A warp for each place in the sorted list and kWarpSize * kGroup columns; that of the first token
// of an id adds all of its rows.
template <bool aligned, class T>
HALFSTEP_KERNEL void AddRows(Extent extent, SortedTokens sorted, Pointer<const T> dy,
                             Pointer<float> dtable) {
  const int64_t place = int64_t{BlockX()} * kWarps + Warp();
  if (place >= extent.tokens) return;
  const int32_t id = sorted.id[place];
  if (id < 0 || id >= extent.vocabulary) return;
  if (place > 0 && sorted.id[place - 1] == id) return;
  const int64_t i = (int64_t{BlockY()} * kWarpSize + Lane()) * kGroup;
  const int64_t rest = extent.width - i;
  float sum[kGroup] = {};
  if (rest > 0) LoadGroup<aligned>(Pointer<const float>(dtable), id * extent.width + i, rest, sum);
  for (int64_t first = place, found = kWarpSize; found == kWarpSize; first += found) {
    // Each lane looks at one of the next places, so that the rows' addresses are known ahead.
    const int64_t own = first + Lane();
    const bool same = own < extent.tokens && sorted.id[own] == id;
    const int at = same ? sorted.at[own] : 0;
    found = WarpSum(same ? 1 : 0);
    for (int k = 0; k < found; ++k) {
      const int64_t row = Shuffle(at, k);
      if (rest <= 0) continue;
      float v[kGroup];
      LoadGroup<aligned>(dy, row * extent.width + i, rest, v);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) sum[j] += v[j];
    }
  }
  if (rest > 0) {
    StoreGroup<aligned>(dtable, id * extent.width + i, rest, sum,
                        [](float value) { return value; });
  }
}

}  // namespace

void Embedding(const ExecContext& ctx, ConstTensor tokens, ConstTensor table, Tensor y) {
  if (y.dtype() == table.dtype()) {
    Gather(ctx, "Embedding", table, tokens, y);
  } else if (table.dtype() == DType::kFloat16) {
    WidenOf<Float16>(ctx, tokens, table, y);
  } else {
    WidenOf<BFloat16>(ctx, tokens, table, y);
  }
}

void EmbeddingBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor tokens, Tensor dtable) {
  const Extent extent{tokens.dim(0), dtable.dim(0), dtable.dim(1)};
  Workspace::Scope scratch(ctx.workspace);
  const SortedTokens sorted{PointerTo<int32_t>(scratch.Take(DType::kInt32, {extent.tokens})),
                            PointerTo<int32_t>(scratch.Take(DType::kInt32, {extent.tokens}))};
  Launch(ctx,
         {"EmbeddingBackward sort", CeilDivide(extent.tokens, kTile), 1, kTile,
          kTile * sizeof(uint32_t)},
         SortTokens, extent.tokens, PointerTo<const int32_t>(tokens), sorted);
  const auto sums = PointerTo<float>(dtable);
  DispatchFloat(dy.dtype(), [&]<class T>() {
    const auto from = PointerTo<const T>(dy);
    const bool aligned = RowsAreAligned(from, extent.width) && RowsAreAligned(sums, extent.width);
    Launch(ctx,
           {"EmbeddingBackward", CeilDivide(extent.tokens, kWarps),
            CeilDivide(extent.width, kWarpSize * kGroup), kThreads},
           aligned ? AddRows<true, T> : AddRows<false, T>, extent, sorted, from, sums);
  });
}

}  // namespace halfstep::cuda
