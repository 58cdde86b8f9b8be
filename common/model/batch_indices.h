// SPDX-License-Identifier: Apache-2.0
// The index tensors of one pass, on the device of the pass.
#pragma once

#include "common/model/batch.h"
#include "kernels/exec_context.h"
#include "kernels/tensor.h"
#include "kernels/workspace.h"

namespace halfstep {

// int32 tensors with the names and shapes of the batch's vectors.
struct PackedIndices {
  ConstTensor tokens;
  ConstTensor positions;
  ConstTensor cu_seqlens;
  ConstTensor logit_rows;
};
struct StepIndices {
  ConstTensor tokens;
  ConstTensor positions;
  ConstTensor slots;
  ConstTensor query_start;
  ConstTensor context;
  ConstTensor block_tables;  // [sequences, max_blocks]
  ConstTensor logit_rows;
};

// On the CPU views of the batch's vectors; on another device copies of them in one piece of
// scratch, which live as long as the scope.
ConstTensor IndicesOf(const ExecContext& ctx, const std::vector<int32_t>& indices,
                      Workspace::Scope* scratch);
PackedIndices IndicesOf(const ExecContext& ctx, const PackedBatch& batch,
                        Workspace::Scope* scratch);
StepIndices IndicesOf(const ExecContext& ctx, const StepBatch& batch, Workspace::Scope* scratch);

}  // namespace halfstep
