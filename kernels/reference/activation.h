// SPDX-License-Identifier: Apache-2.0
// Specification of kernels/ops/activation.h in double; real tensors are fp64.
#pragma once

#include "kernels/tensor.h"

namespace halfstep::reference {

void SwiGlu(ConstTensor gate_up, Tensor y);
void SwiGluBackward(ConstTensor dy, ConstTensor gate_up, Tensor dgate_up);

}  // namespace halfstep::reference
