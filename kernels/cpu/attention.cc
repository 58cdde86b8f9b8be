// SPDX-License-Identifier: Apache-2.0
// Causal attention over packed sequences: arranges the keys and values of one sequence and
// key-value head as cache blocks in FP32, an exact conversion, and runs the tiles of the paged path
// on them.
#include "kernels/cpu/attention.h"

#include <algorithm>

#include "kernels/cpu/parallel.h"
#include "kernels/dispatch_float.h"
#include "kernels/workspace.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/attention_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {
namespace {

size_t LongestSequence(ConstTensor cu_seqlens) {
  const int32_t* start = cu_seqlens.as<int32_t>();
  int32_t longest = 0;
  for (int64_t s = 0; s + 1 < cu_seqlens.dim(0); ++s) {
    longest = std::max(longest, start[s + 1] - start[s]);
  }
  return static_cast<size_t>(longest);
}

template <class T>
void PackedAttentionOf(const ExecContext& ctx, const PackedAttention& in, Tensor out, Tensor lse) {
  const size_t heads = static_cast<size_t>(in.q.dim(1));
  const size_t kv_heads = static_cast<size_t>(in.k.dim(1));
  const size_t head_dim = static_cast<size_t>(in.q.dim(2));
  const size_t all_tokens = static_cast<size_t>(in.q.dim(0));
  const size_t padded = PadHeadDim(head_dim);
  const size_t group = heads / kv_heads;
  const size_t places = (LongestSequence(in.cu_seqlens) + kBlock - 1) / kBlock * kBlock;
  const size_t per_thread = places * (head_dim + padded) + TileScratch(head_dim);
  Workspace::Scope scope(ctx.workspace);
  float* const scratch = scope.Array<float>(static_cast<size_t>(Threads(ctx)) * per_thread);
  const int32_t* start = in.cu_seqlens.as<int32_t>();

  const auto attend = [&](int64_t task, int thread) HWY_ATTR {
    const size_t s = static_cast<size_t>(task) / kv_heads;
    const size_t kv_head = static_cast<size_t>(task) % kv_heads;
    const size_t first = static_cast<size_t>(start[s]);
    const size_t tokens = static_cast<size_t>(start[s + 1]) - first;
    float* const keys = scratch + static_cast<size_t>(thread) * per_thread;
    float* const values = keys + places * head_dim;
    float* const tile = values + places * padded;
    const size_t kv_offset = (first * kv_heads + kv_head) * head_dim;
    const size_t kv_stride = kv_heads * head_dim;
    TransposeBlocks(in.k.as<T>() + kv_offset, kv_stride, tokens, head_dim, keys);
    LoadRows(in.v.as<T>() + kv_offset, kv_stride, tokens, head_dim, values);

    const size_t head = kv_head * group;
    const size_t q_offset = (first * heads + head) * head_dim;
    RowCounter<T> rows{.q = in.q.as<T>() + q_offset,
                       .out = out.as<T>() + q_offset,
                       .lse = lse.as<float>() + head * all_tokens + first,
                       .lse_stride = all_tokens,
                       .token_stride = heads * head_dim,
                       .head_dim = head_dim,
                       .group = group,
                       .position = 0};
    const auto block = [=](size_t b, size_t) {
      return KvBlock<float>{keys + b * kBlock * head_dim, values + b * kBlock * padded};
    };
    const size_t saturated =
        Attend<T, 1>(tokens * group, rows, {head_dim, padded, in.scale}, {}, block, tile);
    CountSaturated(ctx, static_cast<int64_t>(saturated));
  };
  ParallelFor(ctx, (in.cu_seqlens.dim(0) - 1) * static_cast<int64_t>(kv_heads), attend);
}

void CausalAttentionImpl(const ExecContext& ctx, const PackedAttention& in, Tensor out,
                         Tensor lse) {
  DispatchFloat(in.q.dtype(), [&]<class T>() { PackedAttentionOf<T>(ctx, in, out, lse); });
}

}  // namespace
}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfstep::cpu {

HWY_EXPORT(CausalAttentionImpl);
void CausalAttention(const ExecContext& ctx, const PackedAttention& in, Tensor out, Tensor lse) {
  HWY_DYNAMIC_DISPATCH(CausalAttentionImpl)(ctx, in, out, lse);
}

}  // namespace halfstep::cpu
#endif
