// SPDX-License-Identifier: Apache-2.0
// CPU backend of kernels/ops/elementwise.h. Shapes were checked by the caller.
#pragma once

#include <span>

#include "kernels/exec_context.h"
#include "kernels/ops/elementwise.h"
#include "kernels/tensor.h"

namespace halfstep::cpu {

void Add(const ExecContext& ctx, ConstTensor a, ConstTensor b, Overflow overflow, Tensor y);
void Accumulate(const ExecContext& ctx, ConstTensor x, Tensor y);
void Cast(const ExecContext& ctx, ConstTensor x, Overflow overflow, Tensor y);
void Copy(const ExecContext& ctx, ConstTensor x, Tensor y);
void FillZero(const ExecContext& ctx, Tensor y);
void SplitColumns(const ExecContext& ctx, ConstTensor x, std::span<const Tensor> outs);
void ConcatColumns(const ExecContext& ctx, std::span<const ConstTensor> ins, Tensor y);
void GatherRows(const ExecContext& ctx, ConstTensor x, ConstTensor rows, Tensor y);
void ScatterRows(const ExecContext& ctx, ConstTensor x, ConstTensor rows, Tensor y);

}  // namespace halfstep::cpu
