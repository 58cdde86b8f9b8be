// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/elementwise.h"

#include "kernels/cpu/elementwise.h"
#include "kernels/dispatch.h"

namespace halfstep {
namespace {

// A column block of a [rows, width] matrix.
template <class Part>
void CheckColumns(ConstTensor matrix, std::span<const Part> parts) {
  HALFSTEP_CHECK_EQ(matrix.rank(), 2);
  int64_t width = 0;
  for (const Part& part : parts) {
    HALFSTEP_CHECK_EQ(part.rank(), 2);
    HALFSTEP_CHECK_EQ(part.dim(0), matrix.dim(0));
    HALFSTEP_CHECK(part.dtype() == matrix.dtype());
    width += part.dim(1);
  }
  HALFSTEP_CHECK_EQ(width, matrix.dim(1));
}

// `few` holds rows.dim(0) of the rows of `many`.
void CheckRows(ConstTensor many, ConstTensor rows, ConstTensor few) {
  HALFSTEP_CHECK_EQ(many.rank(), 2);
  HALFSTEP_CHECK(rows.dtype() == DType::kInt32);
  HALFSTEP_CHECK_EQ(rows.rank(), 1);
  HALFSTEP_CHECK_EQ(few.shape(), (Shape{rows.dim(0), many.dim(1)}));
  HALFSTEP_CHECK(many.dtype() == few.dtype());
}

}  // namespace

void Add(const ExecContext& ctx, ConstTensor a, ConstTensor b, Overflow overflow, Tensor y) {
  HALFSTEP_CHECK_EQ(a.shape(), b.shape());
  HALFSTEP_CHECK_EQ(a.shape(), y.shape());
  HALFSTEP_CHECK(a.dtype() == b.dtype() && a.dtype() == y.dtype() && IsFloat(y.dtype()));
  HALFSTEP_DISPATCH(ctx, Add, a, b, overflow, y);
}

void Accumulate(const ExecContext& ctx, ConstTensor x, Tensor y) {
  HALFSTEP_CHECK_EQ(x.shape(), y.shape());
  HALFSTEP_CHECK(x.dtype() == DType::kFloat32 && y.dtype() == DType::kFloat32);
  HALFSTEP_DISPATCH(ctx, Accumulate, x, y);
}

void Cast(const ExecContext& ctx, ConstTensor x, Overflow overflow, Tensor y) {
  HALFSTEP_CHECK_EQ(x.elements(), y.elements());
  HALFSTEP_CHECK(IsFloat(x.dtype()) && IsFloat(y.dtype()));
  HALFSTEP_DISPATCH(ctx, Cast, x, overflow, y);
}

void Copy(const ExecContext& ctx, ConstTensor x, Tensor y) {
  HALFSTEP_CHECK_EQ(x.bytes(), y.bytes());
  HALFSTEP_DISPATCH(ctx, Copy, x, y);
}

void FillZero(const ExecContext& ctx, Tensor y) { HALFSTEP_DISPATCH(ctx, FillZero, y); }

void SplitColumns(const ExecContext& ctx, ConstTensor x, std::span<const Tensor> outs) {
  CheckColumns(x, outs);
  HALFSTEP_DISPATCH(ctx, SplitColumns, x, outs);
}

void ConcatColumns(const ExecContext& ctx, std::span<const ConstTensor> ins, Tensor y) {
  CheckColumns(y, ins);
  HALFSTEP_DISPATCH(ctx, ConcatColumns, ins, y);
}

void GatherRows(const ExecContext& ctx, ConstTensor x, ConstTensor rows, Tensor y) {
  CheckRows(x, rows, y);
  HALFSTEP_DISPATCH(ctx, GatherRows, x, rows, y);
}

void ScatterRows(const ExecContext& ctx, ConstTensor x, ConstTensor rows, Tensor y) {
  CheckRows(y, rows, x);
  HALFSTEP_DISPATCH(ctx, ScatterRows, x, rows, y);
}

}  // namespace halfstep
