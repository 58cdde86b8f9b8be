// SPDX-License-Identifier: Apache-2.0
// RMS normalisation (Zhang & Sennrich, arXiv 1910.07467), over hidden states or over each head.
#pragma once

#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep {

// y[r, :] = x[r, :] * rstd[r] * weight, rstd[r] = 1 / sqrt(mean(x[r, :]^2) + epsilon); one
// rounding, on the store. x, y: [rows, width], each in the dtype of the weight or FP32 (of one
// dtype, they may be the same memory); weight: [width]; rstd: FP32 [rows], saved for the backward,
// or empty. For a norm per head, rows = tokens * heads.
void RmsNorm(const ExecContext& ctx, ConstTensor x, ConstTensor weight, float epsilon, Tensor y,
             Tensor rstd);

// dx, in the dtype of x, overwritten (of one dtype, it may be the memory of dy); dy: in the dtype
// of the weight or FP32; dweight (FP32 [width]) accumulates in ascending row order.
void RmsNormBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor x, ConstTensor weight,
                     ConstTensor rstd, Tensor dx, Tensor dweight);

}  // namespace halfstep
