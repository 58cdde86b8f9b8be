// SPDX-License-Identifier: Apache-2.0
// Causal attention backward. Probabilities are recomputed from the saved log-sum-exp and stay in
// FP32. One pass over the query rows of a key-value head, in tiles: dQ sums over ascending keys, dK
// and dV over ascending rows, so neither tile sizes nor threads change a bit.
#include <algorithm>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/parallel.h"
#include "kernels/dispatch_float.h"
#include "kernels/workspace.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_backward.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/attention-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {
namespace {

// Query rows whose probabilities are held at a time.
constexpr size_t kRowTile = 32;

// One key-value head of one sequence, arranged in FP32. `rows` = tokens * group.
struct Arranged {
  size_t tokens;
  size_t group;
  size_t head_dim;
  size_t padded;
  float scale;
  float* keys_transposed;    // [blocks][head_dim][32]
  float* values_transposed;  // [blocks][head_dim][32]
  float* keys;               // [tokens][padded]
  float* q;                  // [rows][padded]
  float* dout;               // [rows][padded]
  float* lse;                // [rows]
  float* delta;              // [rows], sum of dout * out
  float* dk;                 // [tokens][padded]
  float* dv;                 // [tokens][padded]
  float* dq;                 // [kRowTile][padded], of the current tile
  float* p;                  // [kRowTile][32], of the current tile and block
  float* ds;                 // [kRowTile][32]
};

size_t BlocksOf(size_t tokens) { return (tokens + kBlock - 1) / kBlock; }

size_t ScratchFloats(size_t tokens, size_t group, size_t head_dim) {
  const size_t padded = PadHeadDim(head_dim);
  const size_t rows = (tokens * group + 15) / 16 * 16;
  return 2 * BlocksOf(tokens) * kBlock * head_dim + 3 * tokens * padded + 2 * rows * padded +
         2 * rows + kRowTile * (padded + 2 * kBlock);
}

Arranged Partition(float* scratch, size_t tokens, size_t group, size_t head_dim, float scale) {
  const auto take = [&](size_t count) {
    float* const begin = scratch;
    scratch += count;
    return begin;
  };
  const size_t padded = PadHeadDim(head_dim);
  const size_t rows = (tokens * group + 15) / 16 * 16;
  Arranged a;
  a.tokens = tokens;
  a.group = group;
  a.head_dim = head_dim;
  a.padded = padded;
  a.scale = scale;
  a.keys_transposed = take(BlocksOf(tokens) * kBlock * head_dim);
  a.values_transposed = take(BlocksOf(tokens) * kBlock * head_dim);
  a.keys = take(tokens * padded);
  a.dk = take(tokens * padded);
  a.dv = take(tokens * padded);
  a.q = take(rows * padded);
  a.dout = take(rows * padded);
  a.lse = take(rows);
  a.delta = take(rows);
  a.dq = take(kRowTile * padded);
  a.p = take(kRowTile * kBlock);
  a.ds = take(kRowTile * kBlock);
  return a;
}

// P and dS of `Rows` rows of the tile against the first 16 * Vectors keys of block `b`.
template <size_t Rows, size_t Vectors>
HWY_INLINE void Probabilities(const Arranged& a, size_t first_row, size_t b, float* p, float* ds) {
  const size_t at = b * kBlock * a.head_dim;
  const size_t row_at = first_row * a.padded;
  const float* const keys[1] = {a.keys_transposed + at};
  const float* const values[1] = {a.values_transposed + at};
  Product<Start::kZero, Rows, Vectors>(LeftFactor{a.q + row_at, a.padded, 1}, keys, kBlock,
                                       a.head_dim, p, kBlock);
  Product<Start::kZero, Rows, Vectors>(LeftFactor{a.dout + row_at, a.padded, 1}, values, kBlock,
                                       a.head_dim, ds, kBlock);
  const F32x16 scale = Set16(a.scale);
  size_t member = first_row % a.group;
  size_t end = first_row / a.group + 1;  // keys that the row sees
  for (size_t r = 0; r < Rows; ++r) {
    const size_t row = first_row + r;
    for (size_t v = 0; v < Vectors; ++v) {
      const size_t begin = b * kBlock + v * kVirtualLanes;
      float* const p_at = p + r * kBlock + v * kVirtualLanes;
      float* const ds_at = ds + r * kBlock + v * kVirtualLanes;
      const Mask16 seen = FirstLanes(end <= begin ? 0 : std::min(end - begin, kVirtualLanes));
      const F32x16 probability = Exp(Load16(p_at) * scale - Set16(a.lse[row]));
      const F32x16 gradient = probability * (Load16(ds_at) - Set16(a.delta[row])) * scale;
      Store16(Select(seen, probability, Zero16()), p_at);
      Store16(Select(seen, gradient, Zero16()), ds_at);
    }
    if (++member == a.group) {
      member = 0;
      ++end;
    }
  }
}

// Adds what rows [first_row, first_row + rows) and the keys of block `b` give each other.
void AddBlock(const Arranged& a, size_t first_row, size_t rows, size_t b) {
  const size_t last_key = (first_row + rows - 1) / a.group;
  const size_t keys = std::min(last_key + 1 - b * kBlock, kBlock);
  const size_t padded = a.padded;
  for (size_t r = 0; r < rows; r += kAttentionTileRows) {
    WithRows(std::min(rows - r, kAttentionTileRows), [&]<size_t Rows>() HWY_ATTR {
      float* const p = a.p + r * kBlock;
      float* const ds = a.ds + r * kBlock;
      if (keys > kVirtualLanes) {
        Probabilities<Rows, 2>(a, first_row + r, b, p, ds);
      } else {
        Probabilities<Rows, 1>(a, first_row + r, b, p, ds);
      }
      AddProduct<Rows>(LeftFactor{ds, kBlock, 1}, a.keys + b * kBlock * padded, padded, keys,
                       padded, a.dq + r * padded, padded);
    });
  }
  for (size_t j = 0; j < keys; j += kAttentionTileRows) {
    const size_t key = (b * kBlock + j) * padded;
    WithRows(std::min(keys - j, kAttentionTileRows), [&]<size_t Keys>() HWY_ATTR {
      AddProduct<Keys>(LeftFactor{a.ds + j, 1, kBlock}, a.q + first_row * padded, padded, rows,
                       padded, a.dk + key, padded);
      AddProduct<Keys>(LeftFactor{a.p + j, 1, kBlock}, a.dout + first_row * padded, padded, rows,
                       padded, a.dv + key, padded);
    });
  }
}

template <class T>
void StoreRow(const float* from, size_t head_dim, T* to) {
  for (size_t d = 0; d < head_dim; d += kVirtualLanes) {
    Store16(Load16(from + d), to + d, head_dim - d);
  }
}

float RowDot(const float* a, const float* b, size_t padded) {
  F32x16 sum = Zero16();
  for (size_t d = 0; d < padded; d += kVirtualLanes)
    sum = MulAdd(Load16(a + d), Load16(b + d), sum);
  return ReduceSum(sum);
}

struct Gradients {
  Tensor dq;
  Tensor dk;
  Tensor dv;
};

template <class T>
void BackwardSequence(ConstTensor dout, const PackedAttention& in, ConstTensor out, ConstTensor lse,
                      const Gradients& to, size_t first, size_t kv_head, const Arranged& a) {
  const size_t heads = static_cast<size_t>(in.q.dim(1));
  const size_t kv_heads = static_cast<size_t>(in.k.dim(1));
  const size_t head_dim = a.head_dim;
  const size_t padded = a.padded;
  const size_t kv_offset = (first * kv_heads + kv_head) * head_dim;
  const size_t kv_stride = kv_heads * head_dim;
  TransposeBlocks(in.k.as<T>() + kv_offset, kv_stride, a.tokens, head_dim, a.keys_transposed);
  TransposeBlocks(in.v.as<T>() + kv_offset, kv_stride, a.tokens, head_dim, a.values_transposed);
  LoadRows(in.k.as<T>() + kv_offset, kv_stride, a.tokens, head_dim, a.keys);
  std::fill_n(a.dk, a.tokens * padded, 0.0f);
  std::fill_n(a.dv, a.tokens * padded, 0.0f);

  const size_t head = kv_head * a.group;
  const size_t all_tokens = static_cast<size_t>(in.q.dim(0));
  for (size_t t = 0; t < a.tokens; ++t) {
    const size_t offset = ((first + t) * heads + head) * head_dim;
    const size_t row = t * a.group;
    const size_t ahead = offset + kPrefetchRows * heads * head_dim;
    for (const ConstTensor& x : {in.q, dout, out}) {
      PrefetchRow(x.as<T>() + ahead, a.group * head_dim);
    }
    LoadRows(in.q.as<T>() + offset, head_dim, a.group, head_dim, a.q + row * padded);
    LoadRows(dout.as<T>() + offset, head_dim, a.group, head_dim, a.dout + row * padded);
    for (size_t g = 0; g < a.group; ++g) {
      LoadRows(out.as<T>() + offset + g * head_dim, 0, 1, head_dim, a.dq);
      a.delta[row + g] = RowDot(a.dout + (row + g) * padded, a.dq, padded);
      a.lse[row + g] = lse.as<float>()[(head + g) * all_tokens + first + t];
    }
  }

  const size_t rows = a.tokens * a.group;
  for (size_t row = 0; row < rows; row += kRowTile) {
    const size_t count = std::min(rows - row, kRowTile);
    std::fill_n(a.dq, count * padded, 0.0f);
    const size_t last = (row + count - 1) / a.group;
    for (size_t b = 0; b * kBlock <= last; ++b) AddBlock(a, row, count, b);
    for (size_t r = 0; r < count; ++r) {
      const size_t token = first + (row + r) / a.group;
      const size_t at = (token * heads + head + (row + r) % a.group) * head_dim;
      StoreRow(a.dq + r * padded, head_dim, to.dq.as<T>() + at);
    }
  }
  for (size_t t = 0; t < a.tokens; ++t) {
    StoreRow(a.dk + t * padded, head_dim, to.dk.as<T>() + kv_offset + t * kv_stride);
    StoreRow(a.dv + t * padded, head_dim, to.dv.as<T>() + kv_offset + t * kv_stride);
  }
}

void CausalAttentionBackwardImpl(const ExecContext& ctx, ConstTensor dout,
                                 const PackedAttention& in, ConstTensor out, ConstTensor lse,
                                 Tensor dq, Tensor dk, Tensor dv) {
  const size_t kv_heads = static_cast<size_t>(in.k.dim(1));
  const size_t head_dim = static_cast<size_t>(in.q.dim(2));
  const size_t group = static_cast<size_t>(in.q.dim(1)) / kv_heads;
  const int32_t* start = in.cu_seqlens.as<int32_t>();
  const int64_t sequences = in.cu_seqlens.dim(0) - 1;
  size_t longest = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    longest = std::max(longest, static_cast<size_t>(start[s + 1] - start[s]));
  }
  const size_t per_thread = ScratchFloats(longest, group, head_dim);
  Workspace::Scope scope(ctx.workspace);
  float* const scratch = scope.Array<float>(static_cast<size_t>(Threads(ctx)) * per_thread);
  const Gradients gradients{dq, dk, dv};
  DispatchFloat(in.q.dtype(), [&]<class T>() {
    ParallelFor(ctx, sequences * static_cast<int64_t>(kv_heads), [&](int64_t task, int thread) {
      const size_t s = static_cast<size_t>(task) / kv_heads;
      const size_t first = static_cast<size_t>(start[s]);
      const size_t tokens = static_cast<size_t>(start[s + 1]) - first;
      if (tokens == 0) return;
      const Arranged arranged = Partition(scratch + static_cast<size_t>(thread) * per_thread,
                                          tokens, group, head_dim, in.scale);
      BackwardSequence<T>(dout, in, out, lse, gradients, first,
                          static_cast<size_t>(task) % kv_heads, arranged);
    });
  });
}

}  // namespace
}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfstep::cpu {

HWY_EXPORT(CausalAttentionBackwardImpl);
void CausalAttentionBackward(const ExecContext& ctx, ConstTensor dout, const PackedAttention& in,
                             ConstTensor out, ConstTensor lse, Tensor dq, Tensor dk, Tensor dv) {
  HWY_DYNAMIC_DISPATCH(CausalAttentionBackwardImpl)(ctx, dout, in, out, lse, dq, dk, dv);
}

}  // namespace halfstep::cpu
#endif
