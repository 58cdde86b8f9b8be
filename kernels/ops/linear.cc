// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/linear.h"

#include "kernels/cpu/linear.h"
#include "kernels/dispatch.h"

namespace halfstep {
namespace {

void CheckWeight(const ExecContext& ctx, ConstTensor rows, const LinearWeight& weight) {
  HALFSTEP_CHECK_EQ(rows.rank(), 2);
  HALFSTEP_CHECK_EQ(weight.weight.rank(), 2);
  HALFSTEP_CHECK(IsFloat(weight.weight.dtype()));
  HALFSTEP_CHECK(rows.dtype() == weight.weight.dtype() || rows.dtype() == DType::kFloat32);
  HALFSTEP_CHECK_EQ(weight.packed.bytes(),
                    PackedLinearBytes(ctx.device, weight.weight.dtype(), weight.weight.dim(0),
                                      weight.weight.dim(1)));
}

}  // namespace

size_t PackedLinearBytes(Device device, DType dtype, int64_t out_features, int64_t in_features) {
  switch (device.type) {
    case DeviceType::kCpu:
      return cpu::PackedLinearBytes(dtype, out_features, in_features);
    case DeviceType::kCuda:
      return 0;
  }
  return 0;
}

void PackLinear(const ExecContext& ctx, ConstTensor weight, Tensor packed) {
  HALFSTEP_CHECK_EQ(weight.rank(), 2);
  HALFSTEP_CHECK(IsFloat(weight.dtype()));
  HALFSTEP_CHECK_EQ(packed.bytes(),
                    PackedLinearBytes(ctx.device, weight.dtype(), weight.dim(0), weight.dim(1)));
  if (packed.bytes() == 0) return;  // the backend reads the plain weight
  RequireSupportedCpu();
  cpu::PackLinear(ctx, weight, packed);
}

void Linear(const ExecContext& ctx, ConstTensor x, const LinearWeight& weight, Tensor y) {
  CheckWeight(ctx, x, weight);
  HALFSTEP_CHECK_EQ(x.dim(1), weight.weight.dim(1));
  HALFSTEP_CHECK_EQ(y.shape(), (Shape{x.dim(0), weight.weight.dim(0)}));
  HALFSTEP_CHECK(y.dtype() == x.dtype() || y.dtype() == DType::kFloat32);
  if (!weight.bias.empty()) {
    HALFSTEP_CHECK_EQ(weight.bias.shape(), (Shape{weight.weight.dim(0)}));
    HALFSTEP_CHECK(weight.bias.dtype() == weight.weight.dtype());
  }
  HALFSTEP_DISPATCH(ctx, Linear, x, weight, y);
}

void LinearBackwardInput(const ExecContext& ctx, ConstTensor dy, const LinearWeight& weight,
                         Tensor dx) {
  CheckWeight(ctx, dy, weight);
  HALFSTEP_CHECK_EQ(dy.dim(1), weight.weight.dim(0));
  HALFSTEP_CHECK_EQ(dx.shape(), (Shape{dy.dim(0), weight.weight.dim(1)}));
  HALFSTEP_CHECK(dx.dtype() == weight.weight.dtype() || dx.dtype() == dy.dtype());
  HALFSTEP_DISPATCH(ctx, LinearBackwardInput, dy, weight, dx);
}

void LinearBackwardWeight(const ExecContext& ctx, ConstTensor dy, ConstTensor x, Tensor dweight,
                          Tensor dbias) {
  HALFSTEP_CHECK_EQ(dy.rank(), 2);
  HALFSTEP_CHECK_EQ(x.rank(), 2);
  HALFSTEP_CHECK_EQ(dy.dim(0), x.dim(0));
  HALFSTEP_CHECK(IsFloat(x.dtype()));
  HALFSTEP_CHECK(dy.dtype() == x.dtype() || dy.dtype() == DType::kFloat32);
  HALFSTEP_CHECK_EQ(dweight.shape(), (Shape{dy.dim(1), x.dim(1)}));
  HALFSTEP_CHECK(dweight.dtype() == DType::kFloat32);
  if (!dbias.empty()) {
    HALFSTEP_CHECK_EQ(dbias.shape(), (Shape{dy.dim(1)}));
    HALFSTEP_CHECK(dbias.dtype() == DType::kFloat32);
  }
  HALFSTEP_DISPATCH(ctx, LinearBackwardWeight, dy, x, dweight, dbias);
}

}  // namespace halfstep
