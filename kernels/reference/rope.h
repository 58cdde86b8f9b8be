// SPDX-License-Identifier: Apache-2.0
// Specification of kernels/ops/rope.h in double; real tensors are fp64.
#pragma once

#include "kernels/tensor.h"

namespace halfstep::reference {

// table: fp64 [positions, 2, head_dim / 2].
void Rope(ConstTensor x, ConstTensor positions, ConstTensor table, Tensor y);
void RopeBackward(ConstTensor dy, ConstTensor positions, ConstTensor table, Tensor dx);

}  // namespace halfstep::reference
