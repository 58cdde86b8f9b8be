// SPDX-License-Identifier: Apache-2.0
// Specification of kernels/ops/linear.h in double; real tensors are fp64.
#pragma once

#include "kernels/tensor.h"

namespace halfstep::reference {

// `bias` may be empty.
void Linear(ConstTensor x, ConstTensor weight, ConstTensor bias, Tensor y);
void LinearBackwardInput(ConstTensor dy, ConstTensor weight, Tensor dx);
// Accumulates; `dbias` may be empty.
void LinearBackwardWeight(ConstTensor dy, ConstTensor x, Tensor dweight, Tensor dbias);

}  // namespace halfstep::reference
