// SPDX-License-Identifier: Apache-2.0
// CPU backend of kernels/ops/rope.h. Shapes were checked by the caller.
#pragma once

#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep::cpu {

void Rope(const ExecContext& ctx, ConstTensor x, ConstTensor positions, ConstTensor table,
          Tensor y);
void RopeBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor positions, ConstTensor table,
                  Tensor dx);

}  // namespace halfstep::cpu
