// SPDX-License-Identifier: Apache-2.0
// What the decoding engine of the fast profile runs instead of the plain operations: several steps
// of a layer in one pass over FP32 values. A value is stored, and so rounded, once where the plain
// operations store it after every step; the numbers differ from theirs by that rounding.
#pragma once

#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep {

// sum = residual + delta, rounded on the store; y = RmsNorm of the *unrounded* sum (ops/norm.h).
// residual, sum: [rows, width] of one dtype (may be the same memory), which is that of the weight
// or FP32; delta: FP32 [rows, width]; weight: [width]; y: [rows, width], likewise of either dtype.
void AddRmsNorm(const ExecContext& ctx, ConstTensor residual, ConstTensor delta, ConstTensor weight,
                float epsilon, Tensor sum, Tensor y);

// The products of a layer's first projection, and how its heads come from them.
struct ProjectedHeads {
  ConstTensor qkv;        // FP32 [tokens, (heads + 2 * kv_heads) * head_dim]: queries, keys, values
  ConstTensor q_norm;     // weight [head_dim] of the RMSNorm of each query head; empty: none
  ConstTensor k_norm;     // the same for keys
  float epsilon = 0;      // of both norms
  ConstTensor positions;  // int32 [tokens]
  ConstTensor rope_table;  // FP32 [positions, 2, head_dim / 2] (ops/rope.h)
};

// q, k: normalised (where there is a weight) and rotated, rounded once; v: rounded. Positions
// outside the table are treated as by Rope. q: [tokens, heads, head_dim]; k, v: [tokens, kv_heads,
// head_dim].
void FinishHeads(const ExecContext& ctx, const ProjectedHeads& in, Tensor q, Tensor k, Tensor v);

}  // namespace halfstep
