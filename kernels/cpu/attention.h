// SPDX-License-Identifier: Apache-2.0
// CPU backend of kernels/ops/attention.h. Shapes were checked by the caller.
#pragma once

#include "kernels/exec_context.h"
#include "kernels/ops/attention.h"
#include "kernels/tensor.h"

namespace halfstep::cpu {

void CausalAttention(const ExecContext& ctx, const PackedAttention& in, Tensor out, Tensor lse);
void CausalAttentionBackward(const ExecContext& ctx, ConstTensor dout, const PackedAttention& in,
                             ConstTensor out, ConstTensor lse, Tensor dq, Tensor dk, Tensor dv);
void WriteKvCache(const ExecContext& ctx, ConstTensor k, ConstTensor v, ConstTensor slots,
                  const KvCacheLayer& cache);
void PagedCausalAttention(const ExecContext& ctx, ConstTensor q, const KvCacheLayer& cache,
                          const PagedBatch& batch, float scale, Tensor out);

}  // namespace halfstep::cpu
