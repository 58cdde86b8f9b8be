// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/norm.h"

#include "kernels/cpu/norm.h"
#include "kernels/dispatch.h"

namespace halfstep {
namespace {

bool IsOneOrFloat32(DType dtype, DType one) { return dtype == one || dtype == DType::kFloat32; }

void CheckShapes(ConstTensor x, ConstTensor weight, ConstTensor rstd, ConstTensor y) {
  HALFSTEP_CHECK_EQ(x.rank(), 2);
  HALFSTEP_CHECK_EQ(x.shape(), y.shape());
  HALFSTEP_CHECK(IsFloat(weight.dtype()));
  HALFSTEP_CHECK(IsOneOrFloat32(x.dtype(), weight.dtype()));
  HALFSTEP_CHECK(IsOneOrFloat32(y.dtype(), weight.dtype()));
  HALFSTEP_CHECK_EQ(weight.shape(), (Shape{x.dim(1)}));
  if (rstd.empty()) return;
  HALFSTEP_CHECK_EQ(rstd.shape(), (Shape{x.dim(0)}));
  HALFSTEP_CHECK(rstd.dtype() == DType::kFloat32);
}

}  // namespace

void RmsNorm(const ExecContext& ctx, ConstTensor x, ConstTensor weight, float epsilon, Tensor y,
             Tensor rstd) {
  CheckShapes(x, weight, rstd, y);
  HALFSTEP_DISPATCH(ctx, RmsNorm, x, weight, epsilon, y, rstd);
}

void RmsNormBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor x, ConstTensor weight,
                     ConstTensor rstd, Tensor dx, Tensor dweight) {
  CheckShapes(x, weight, rstd, dy);
  HALFSTEP_CHECK_EQ(dx.shape(), x.shape());
  HALFSTEP_CHECK(dx.dtype() == x.dtype());
  HALFSTEP_CHECK(!rstd.empty());
  HALFSTEP_CHECK_EQ(dweight.shape(), weight.shape());
  HALFSTEP_CHECK(dweight.dtype() == DType::kFloat32);
  HALFSTEP_DISPATCH(ctx, RmsNormBackward, dy, x, weight, rstd, dx, dweight);
}

}  // namespace halfstep
