// SPDX-License-Identifier: Apache-2.0
// Causal attention with grouped queries, over packed sequences (training) and over a paged
// key-value cache (prefill and decode).
//
// Both run one recurrence: blocks of kKvBlockTokens keys from position 0 on, online softmax in FP32
// (Dao et al., arXiv 2205.14135), probabilities rounded to the dtype before P V, no split over
// keys. So the output row of a query depends on its sequence only, and training equals decoding bit
// for bit. In the fast profile PagedCausalAttention splits the keys of a single query into parts
// that are merged by their log-sum-exp (Flash-Decoding), and on the CPU keeps probabilities in
// FP32.
//
// On CUDA a block of the softmax has 64 keys where elements have 16 bits, head_dim is at most 256,
// 16-bit backward rounds probabilities and their gradients to the dtype before they enter products,
// and a value that is not a number also reaches the queries before it in its block of keys, whose
// probability of 0 does not keep it out of the matrix instruction.
#pragma once

#include <cstddef>

#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep {

// Tokens of one cache block, and the fixed block of the online softmax.
inline constexpr int64_t kKvBlockTokens = 32;

// Packed sequences, head h of the queries reads key-value head h / (heads / kv_heads).
struct PackedAttention {
  ConstTensor q;           // [tokens, heads, head_dim]
  ConstTensor k;           // [tokens, kv_heads, head_dim]
  ConstTensor v;           // [tokens, kv_heads, head_dim]
  ConstTensor cu_seqlens;  // int32 [sequences + 1], ascending from 0 to tokens
  float scale = 0;         // of the scores, above 0, commonly 1 / sqrt(head_dim)
};

// out: [tokens, heads, head_dim]; lse: FP32 [heads, tokens], log-sum-exp of the scaled scores,
// saved for the backward.
void CausalAttention(const ExecContext& ctx, const PackedAttention& in, Tensor out, Tensor lse);

// dq, dk, dv overwritten. Deterministic: the sums over queries and over the heads of a group are
// taken in ascending order.
void CausalAttentionBackward(const ExecContext& ctx, ConstTensor dout, const PackedAttention& in,
                             ConstTensor out, ConstTensor lse, Tensor dq, Tensor dk, Tensor dv);

// The cache of one layer: `blocks` blocks of kKvBlockTokens tokens. How a block lays out its tokens
// is the backend's business; a block holds KvBlockBytes bytes for keys and as many for values.
struct KvCacheLayer {
  Tensor keys;    // uint8 [blocks, KvBlockBytes]
  Tensor values;  // uint8 [blocks, KvBlockBytes]
  DType dtype = DType::kFloat16;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
};
size_t KvBlockBytes(DType dtype, int64_t kv_heads, int64_t head_dim);

// Stores k, v: [tokens, kv_heads, head_dim]. slots: int32 [tokens], block * kKvBlockTokens +
// offset.
void WriteKvCache(const ExecContext& ctx, ConstTensor k, ConstTensor v, ConstTensor slots,
                  const KvCacheLayer& cache);

// Any mix of prefill chunks and single decode tokens. The queries of sequence s are rows
// [query_start[s], query_start[s + 1]) and are its last tokens: with context[s] tokens in the cache
// (these included), query j of n has position context[s] - n + j.
struct PagedBatch {
  ConstTensor query_start;   // int32 [sequences + 1]
  ConstTensor context;       // int32 [sequences]
  ConstTensor block_tables;  // int32 [sequences, max_blocks]; entries past the context are not read
};

// q, out: [tokens, heads, head_dim]. Keys and values of the queries are already in the cache.
void PagedCausalAttention(const ExecContext& ctx, ConstTensor q, const KvCacheLayer& cache,
                          const PagedBatch& batch, float scale, Tensor out);

}  // namespace halfstep
