// SPDX-License-Identifier: Apache-2.0
// CPU backend of kernels/ops/embedding.h. Shapes were checked by the caller.
#pragma once

#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep::cpu {

void Embedding(const ExecContext& ctx, ConstTensor tokens, ConstTensor table, Tensor y);
void EmbeddingBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor tokens, Tensor dtable);

}  // namespace halfstep::cpu
