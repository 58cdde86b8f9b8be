// SPDX-License-Identifier: Apache-2.0
// Token embedding.
#pragma once

#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep {

// y[t, :] = table[tokens[t], :]. tokens: int32 [tokens], within the table (CHECKed); table: [vocab,
// hidden]; y: [tokens, hidden] in the dtype of the table or FP32.
void Embedding(const ExecContext& ctx, ConstTensor tokens, ConstTensor table, Tensor y);

// dtable (FP32 [vocab, hidden]) accumulates dy rows in ascending token order.
void EmbeddingBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor tokens, Tensor dtable);

}  // namespace halfstep
