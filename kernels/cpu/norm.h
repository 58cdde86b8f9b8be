// SPDX-License-Identifier: Apache-2.0
// CPU backend of kernels/ops/norm.h. Shapes were checked by the caller.
#pragma once

#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep::cpu {

void RmsNorm(const ExecContext& ctx, ConstTensor x, ConstTensor weight, float epsilon, Tensor y,
             Tensor rstd);
void RmsNormBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor x, ConstTensor weight,
                     ConstTensor rstd, Tensor dx, Tensor dweight);

}  // namespace halfstep::cpu
