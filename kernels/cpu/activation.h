// SPDX-License-Identifier: Apache-2.0
// CPU backend of kernels/ops/activation.h. Shapes were checked by the caller.
#pragma once

#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep::cpu {

void SwiGlu(const ExecContext& ctx, ConstTensor gate_up, Tensor y);
void SwiGluBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor gate_up, Tensor dgate_up);

}  // namespace halfstep::cpu
