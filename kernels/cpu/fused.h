// SPDX-License-Identifier: Apache-2.0
// CPU backend of kernels/ops/fused.h. Shapes were checked by the caller.
#pragma once

#include "kernels/exec_context.h"
#include "kernels/ops/fused.h"
#include "kernels/tensor.h"

namespace halfstep::cpu {

void AddRmsNorm(const ExecContext& ctx, ConstTensor residual, ConstTensor delta, ConstTensor weight,
                float epsilon, Tensor sum, Tensor y);
void FinishHeads(const ExecContext& ctx, const ProjectedHeads& in, Tensor q, Tensor k, Tensor v);

}  // namespace halfstep::cpu
