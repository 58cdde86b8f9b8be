// SPDX-License-Identifier: Apache-2.0
// Specification of the packed attention of kernels/ops/attention.h in double: plain softmax,
// nothing rounded; real tensors are fp64. The paged operation has the same mathematics.
#pragma once

#include "kernels/ops/attention.h"
#include "kernels/tensor.h"

namespace halfstep::reference {

// lse: fp64 [heads, tokens], may be empty.
void CausalAttention(const PackedAttention& in, Tensor out, Tensor lse);
void CausalAttentionBackward(ConstTensor dout, const PackedAttention& in, Tensor dq, Tensor dk,
                             Tensor dv);

}  // namespace halfstep::reference
