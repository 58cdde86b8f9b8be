// SPDX-License-Identifier: Apache-2.0
// Specification of kernels/ops/norm.h in double; real tensors are fp64.
#pragma once

#include "kernels/tensor.h"

namespace halfstep::reference {

void RmsNorm(ConstTensor x, ConstTensor weight, double epsilon, Tensor y, Tensor rstd);
void RmsNormBackward(ConstTensor dy, ConstTensor x, ConstTensor weight, double epsilon, Tensor dx,
                     Tensor dweight);

}  // namespace halfstep::reference
