// SPDX-License-Identifier: Apache-2.0
// SwiGLU (Shazeer, arXiv 2002.05202): the gated activation of the MLP.
#pragma once

#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep {

// y[t, j] = silu(gate[t, j]) * up[t, j] with gate_up: [tokens, 2 * width] = [gate | up] in the
// dtype of y, or FP32; y: [tokens, width]. Computed in FP32, rounded on the store.
void SwiGlu(const ExecContext& ctx, ConstTensor gate_up, Tensor y);

// dgate_up: [tokens, 2 * width], overwritten.
void SwiGluBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor gate_up, Tensor dgate_up);

}  // namespace halfstep
