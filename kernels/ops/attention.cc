// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/attention.h"

#include "kernels/cpu/attention.h"
#include "kernels/dispatch.h"

namespace halfstep {
namespace {

// Rows of 16 elements: the values of a block are padded to whole vectors of the widest backend.
constexpr int64_t kHeadDimMultiple = 16;

void CheckHeads(ConstTensor q, int64_t kv_heads, int64_t head_dim) {
  HALFSTEP_CHECK_EQ(q.rank(), 3);
  HALFSTEP_CHECK_EQ(q.dim(2), head_dim);
  HALFSTEP_CHECK_GT(kv_heads, 0);
  HALFSTEP_CHECK_EQ(q.dim(1) % kv_heads, 0);
  HALFSTEP_CHECK(IsFloat(q.dtype()));
}

void CheckPacked(const PackedAttention& in, ConstTensor lse) {
  HALFSTEP_CHECK_EQ(in.k.rank(), 3);
  CheckHeads(in.q, in.k.dim(1), in.k.dim(2));
  HALFSTEP_CHECK_EQ(in.k.dim(0), in.q.dim(0));
  HALFSTEP_CHECK_EQ(in.v.shape(), in.k.shape());
  HALFSTEP_CHECK(in.k.dtype() == in.q.dtype() && in.v.dtype() == in.q.dtype());
  HALFSTEP_CHECK_GT(in.scale, 0);
  HALFSTEP_CHECK(in.cu_seqlens.dtype() == DType::kInt32);
  HALFSTEP_CHECK_GE(in.cu_seqlens.elements(), 1);
  HALFSTEP_CHECK_EQ(lse.shape(), (Shape{in.q.dim(1), in.q.dim(0)}));
  HALFSTEP_CHECK(lse.dtype() == DType::kFloat32);
}

void CheckCache(const KvCacheLayer& cache) {
  const int64_t bytes =
      static_cast<int64_t>(KvBlockBytes(cache.dtype, cache.kv_heads, cache.head_dim));
  HALFSTEP_CHECK_EQ(cache.keys.rank(), 2);
  HALFSTEP_CHECK_EQ(cache.keys.dim(1), bytes);
  HALFSTEP_CHECK_EQ(cache.values.shape(), cache.keys.shape());
  HALFSTEP_CHECK(cache.keys.dtype() == DType::kUInt8 && cache.values.dtype() == DType::kUInt8);
}

void CheckSame(ConstTensor a, ConstTensor b) {
  HALFSTEP_CHECK_EQ(a.shape(), b.shape());
  HALFSTEP_CHECK(a.dtype() == b.dtype());
}

}  // namespace

size_t KvBlockBytes(DType dtype, int64_t kv_heads, int64_t head_dim) {
  const int64_t padded = (head_dim + kHeadDimMultiple - 1) / kHeadDimMultiple * kHeadDimMultiple;
  return static_cast<size_t>(kKvBlockTokens * kv_heads * padded) * SizeOf(dtype);
}

void CausalAttention(const ExecContext& ctx, const PackedAttention& in, Tensor out, Tensor lse) {
  CheckPacked(in, lse);
  CheckSame(out, in.q);
  HALFSTEP_DISPATCH(ctx, CausalAttention, in, out, lse);
}

void CausalAttentionBackward(const ExecContext& ctx, ConstTensor dout, const PackedAttention& in,
                             ConstTensor out, ConstTensor lse, Tensor dq, Tensor dk, Tensor dv) {
  CheckPacked(in, lse);
  CheckSame(dout, in.q);
  CheckSame(out, in.q);
  CheckSame(dq, in.q);
  CheckSame(dk, in.k);
  CheckSame(dv, in.v);
  HALFSTEP_DISPATCH(ctx, CausalAttentionBackward, dout, in, out, lse, dq, dk, dv);
}

void WriteKvCache(const ExecContext& ctx, ConstTensor k, ConstTensor v, ConstTensor slots,
                  const KvCacheLayer& cache) {
  CheckCache(cache);
  HALFSTEP_CHECK_EQ(k.shape(), (Shape{slots.elements(), cache.kv_heads, cache.head_dim}));
  CheckSame(v, k);
  HALFSTEP_CHECK(k.dtype() == cache.dtype && slots.dtype() == DType::kInt32);
  HALFSTEP_DISPATCH(ctx, WriteKvCache, k, v, slots, cache);
}

void PagedCausalAttention(const ExecContext& ctx, ConstTensor q, const KvCacheLayer& cache,
                          const PagedBatch& batch, float scale, Tensor out) {
  CheckCache(cache);
  CheckHeads(q, cache.kv_heads, cache.head_dim);
  CheckSame(out, q);
  HALFSTEP_CHECK(q.dtype() == cache.dtype);
  HALFSTEP_CHECK_GT(scale, 0);
  HALFSTEP_CHECK_EQ(batch.block_tables.rank(), 2);
  HALFSTEP_CHECK_EQ(batch.context.shape(), (Shape{batch.block_tables.dim(0)}));
  HALFSTEP_CHECK_EQ(batch.query_start.shape(), (Shape{batch.block_tables.dim(0) + 1}));
  HALFSTEP_CHECK(batch.query_start.dtype() == DType::kInt32 &&
                 batch.context.dtype() == DType::kInt32 &&
                 batch.block_tables.dtype() == DType::kInt32);
  HALFSTEP_DISPATCH(ctx, PagedCausalAttention, q, cache, batch, scale, out);
}

}  // namespace halfstep
