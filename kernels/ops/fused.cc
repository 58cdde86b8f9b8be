// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/fused.h"

#include "kernels/cpu/fused.h"
#include "kernels/dispatch.h"

namespace halfstep {
namespace {

void CheckNormWeight(ConstTensor weight, ConstTensor heads) {
  if (weight.empty()) return;
  HALFSTEP_CHECK_EQ(weight.shape(), (Shape{heads.dim(2)}));
  HALFSTEP_CHECK(weight.dtype() == heads.dtype());
}

}  // namespace

void AddRmsNorm(const ExecContext& ctx, ConstTensor residual, ConstTensor delta, ConstTensor weight,
                float epsilon, Tensor sum, Tensor y) {
  HALFSTEP_CHECK_EQ(residual.rank(), 2);
  HALFSTEP_CHECK_EQ(delta.shape(), residual.shape());
  HALFSTEP_CHECK_EQ(sum.shape(), residual.shape());
  HALFSTEP_CHECK_EQ(y.shape(), residual.shape());
  HALFSTEP_CHECK_EQ(weight.shape(), (Shape{residual.dim(1)}));
  HALFSTEP_CHECK(delta.dtype() == DType::kFloat32);
  HALFSTEP_CHECK(IsFloat(weight.dtype()));
  HALFSTEP_CHECK(residual.dtype() == weight.dtype() || residual.dtype() == DType::kFloat32);
  HALFSTEP_CHECK(sum.dtype() == residual.dtype());
  HALFSTEP_CHECK(y.dtype() == weight.dtype() || y.dtype() == DType::kFloat32);
  HALFSTEP_DISPATCH(ctx, AddRmsNorm, residual, delta, weight, epsilon, sum, y);
}

void FinishHeads(const ExecContext& ctx, const ProjectedHeads& in, Tensor q, Tensor k, Tensor v) {
  HALFSTEP_CHECK_EQ(q.rank(), 3);
  HALFSTEP_CHECK_EQ(k.rank(), 3);
  HALFSTEP_CHECK_EQ(k.shape(), v.shape());
  HALFSTEP_CHECK_EQ(k.dim(0), q.dim(0));
  HALFSTEP_CHECK_EQ(k.dim(2), q.dim(2));
  HALFSTEP_CHECK(IsFloat(q.dtype()) && k.dtype() == q.dtype() && v.dtype() == q.dtype());
  HALFSTEP_CHECK_EQ(in.qkv.shape(), (Shape{q.dim(0), (q.dim(1) + 2 * k.dim(1)) * q.dim(2)}));
  HALFSTEP_CHECK(in.qkv.dtype() == DType::kFloat32);
  CheckNormWeight(in.q_norm, q);
  CheckNormWeight(in.k_norm, k);
  HALFSTEP_CHECK_EQ(in.positions.shape(), (Shape{q.dim(0)}));
  HALFSTEP_CHECK(in.positions.dtype() == DType::kInt32);
  HALFSTEP_CHECK_EQ(in.rope_table.rank(), 3);
  HALFSTEP_CHECK_EQ(2 * in.rope_table.dim(2), q.dim(2));
  HALFSTEP_CHECK(in.rope_table.dtype() == DType::kFloat32);
  HALFSTEP_DISPATCH(ctx, FinishHeads, in, q, k, v);
}

}  // namespace halfstep
