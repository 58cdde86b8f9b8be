// SPDX-License-Identifier: Apache-2.0
// Linear layers: y = x W^T + b, forward and both backward products.
//
// Every output element is one FP32 accumulation chain over the ascending inner index, so a row's
// bits do not depend on the other rows, on tiles or on threads (docs/numerics.md). Only the forward
// of the fast profile may split the inner index, where the rows are few. On CUDA the chain of
// 16-bit factors goes in steps of 16, and cuBLASLt, where it computes the forward of the fast
// profile or a backward product, may split it, in the same way in each run
// (cuda/gemm_provider.h).
#pragma once

#include <cstddef>

#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep {

// A weight as the operations want it. Non-owning.
struct LinearWeight {
  ConstTensor weight;  // [out_features, in_features]
  ConstTensor packed;  // the same values as PackLinear arranged them; uint8 [PackedLinearBytes]
  ConstTensor bias;    // [out_features], or empty
};

// Bytes of the arrangement that the backend of `device` wants beside the plain weight; 0 when it
// reads the plain weight itself.
size_t PackedLinearBytes(Device device, DType dtype, int64_t out_features, int64_t in_features);

// Fills `packed` (uint8 [PackedLinearBytes]) from `weight`; to be called after each change of
// `weight`.
void PackLinear(const ExecContext& ctx, ConstTensor weight, Tensor packed);

// y[t, o] = sum_i x[t, i] weight[o, i] + bias[o].
// x: [tokens, in] in the dtype of the weight, y: [tokens, out] likewise, or FP32 (no rounding). x
// may be FP32 where y is; the weight is then converted exactly.
void Linear(const ExecContext& ctx, ConstTensor x, const LinearWeight& weight, Tensor y);

// dx[t, i] = sum_o dy[t, o] weight[o, i], ascending o. dy: [tokens, out] in the dtype of the weight
// or FP32; dx: [tokens, in] in that of the weight, or with dy FP32; overwritten. Stores may become
// Inf: the loss scaler looks for it.
void LinearBackwardInput(const ExecContext& ctx, ConstTensor dy, const LinearWeight& weight,
                         Tensor dx);

// dweight[o, i] += sum_t dy[t, o] x[t, i], ascending t, continuing the chain that `dweight` holds,
// so a different split of the tokens over calls changes no bit. (On CUDA, of 16-bit factors, a
// split into multiples of 16 tokens changes none; where cuBLASLt computes, any split may.) dy: in
// the dtype of x or FP32; dweight: FP32 [out, in]. dbias (FP32 [out], may be empty) accumulates
// sum_t dy[t, o] in the same order, whatever the split.
void LinearBackwardWeight(const ExecContext& ctx, ConstTensor dy, ConstTensor x, Tensor dweight,
                          Tensor dbias);

}  // namespace halfstep
