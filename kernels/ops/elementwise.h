// SPDX-License-Identifier: Apache-2.0
// Sums, casts and copies.
#pragma once

#include <span>

#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep {

// What a 16-bit store does beyond the largest finite FP16 value: activations saturate (and are
// counted in ctx.saturated_stores), gradients become Inf, so that the loss scaler sees them.
enum class Overflow { kSaturate, kInfinity };

// y = a + b, rounded on the store. Equal shapes and dtypes; y may be the memory of a or b.
void Add(const ExecContext& ctx, ConstTensor a, ConstTensor b, Overflow overflow, Tensor y);

// FP32: y += x.
void Accumulate(const ExecContext& ctx, ConstTensor x, Tensor y);

// y = x in the dtype of y, round to nearest even; x, y in {fp16, bf16, fp32}; equal element counts.
void Cast(const ExecContext& ctx, ConstTensor x, Overflow overflow, Tensor y);

// Bytes of equal count. With a CUDA context x or y may be on the CPU: that memory must stay, and y
// is there, once the stream is synchronised.
void Copy(const ExecContext& ctx, ConstTensor x, Tensor y);
void FillZero(const ExecContext& ctx, Tensor y);

// x: [rows, sum of widths]; outs[i]: [rows, width_i], taken from left to right.
void SplitColumns(const ExecContext& ctx, ConstTensor x, std::span<const Tensor> outs);
void ConcatColumns(const ExecContext& ctx, std::span<const ConstTensor> ins, Tensor y);

// y[i, :] = x[rows[i], :]. rows: int32 [count], ascending and distinct, within x (CHECKed on the
// CPU; on CUDA a row outside gives bytes of 0xff, a NaN of every type); x: [tokens, width]; y:
// [count, width].
void GatherRows(const ExecContext& ctx, ConstTensor x, ConstTensor rows, Tensor y);
// The transpose of GatherRows: y is zero except y[rows[i], :] = x[i, :]. On CUDA a row outside y is
// left out.
void ScatterRows(const ExecContext& ctx, ConstTensor x, ConstTensor rows, Tensor y);

}  // namespace halfstep
