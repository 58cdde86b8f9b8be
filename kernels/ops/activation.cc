// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/activation.h"

#include "kernels/cpu/activation.h"
#include "kernels/dispatch.h"

namespace halfstep {
namespace {

void CheckShapes(ConstTensor gate_up, ConstTensor y) {
  HALFSTEP_CHECK_EQ(y.rank(), 2);
  HALFSTEP_CHECK_EQ(gate_up.shape(), (Shape{y.dim(0), 2 * y.dim(1)}));
  HALFSTEP_CHECK(IsFloat(y.dtype()));
}

}  // namespace

void SwiGlu(const ExecContext& ctx, ConstTensor gate_up, Tensor y) {
  CheckShapes(gate_up, y);
  HALFSTEP_CHECK(gate_up.dtype() == y.dtype() || gate_up.dtype() == DType::kFloat32);
  HALFSTEP_DISPATCH(ctx, SwiGlu, gate_up, y);
}

void SwiGluBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor gate_up, Tensor dgate_up) {
  CheckShapes(gate_up, dy);
  HALFSTEP_CHECK(gate_up.dtype() == dy.dtype());
  HALFSTEP_CHECK_EQ(dgate_up.shape(), gate_up.shape());
  HALFSTEP_CHECK(dgate_up.dtype() == gate_up.dtype());
  HALFSTEP_DISPATCH(ctx, SwiGluBackward, dy, gate_up, dgate_up);
}

}  // namespace halfstep
