// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/embedding.h"

#include "kernels/cpu/embedding.h"
#include "kernels/dispatch.h"

namespace halfstep {
namespace {

void CheckShapes(ConstTensor tokens, ConstTensor table, ConstTensor y) {
  HALFSTEP_CHECK(tokens.dtype() == DType::kInt32);
  HALFSTEP_CHECK_EQ(tokens.rank(), 1);
  HALFSTEP_CHECK_EQ(table.rank(), 2);
  HALFSTEP_CHECK_EQ(y.shape(), (Shape{tokens.dim(0), table.dim(1)}));
}

}  // namespace

void Embedding(const ExecContext& ctx, ConstTensor tokens, ConstTensor table, Tensor y) {
  CheckShapes(tokens, table, y);
  HALFSTEP_CHECK(IsFloat(table.dtype()));
  HALFSTEP_CHECK(y.dtype() == table.dtype() || y.dtype() == DType::kFloat32);
  HALFSTEP_DISPATCH(ctx, Embedding, tokens, table, y);
}

void EmbeddingBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor tokens, Tensor dtable) {
  CheckShapes(tokens, dtable, dy);
  HALFSTEP_CHECK(dtable.dtype() == DType::kFloat32 && IsFloat(dy.dtype()));
  HALFSTEP_DISPATCH(ctx, EmbeddingBackward, dy, tokens, dtable);
}

}  // namespace halfstep
