// SPDX-License-Identifier: Apache-2.0
// Token embedding.
#pragma once

#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep {

// y[t, :] = table[tokens[t], :]. tokens: int32 [tokens], within the table; table: [vocab, hidden];
// y: [tokens, hidden] in the dtype of the table or FP32. A token outside the table is CHECKed on
// the CPU; on CUDA, where the host does not see it, its row becomes NaN.
void Embedding(const ExecContext& ctx, ConstTensor tokens, ConstTensor table, Tensor y);

// dtable (FP32 [vocab, hidden]) accumulates dy rows in ascending token order. On CUDA a token
// outside the table adds nothing.
void EmbeddingBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor tokens, Tensor dtable);

}  // namespace halfstep
