// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/optimizer.h"

#include "kernels/cpu/optimizer.h"
#include "kernels/dispatch.h"

namespace halfstep {

GradientStatistics ComputeGradientStatistics(const ExecContext& ctx, ConstTensor gradient) {
  HALFSTEP_CHECK(gradient.empty() || gradient.dtype() == DType::kFloat32);
  HALFSTEP_DISPATCH(ctx, ComputeGradientStatistics, gradient);
}

void AdamW(const ExecContext& ctx, const AdamWTensors& tensors, const AdamWOptions& options) {
  const int64_t count = tensors.master.elements();
  for (const ConstTensor x :
       {tensors.gradient, ConstTensor(tensors.master), ConstTensor(tensors.first_moment),
        ConstTensor(tensors.second_moment)}) {
    HALFSTEP_CHECK_EQ(x.elements(), count);
    HALFSTEP_CHECK(x.dtype() == DType::kFloat32);
  }
  HALFSTEP_CHECK_EQ(tensors.weights.elements(), count);
  HALFSTEP_CHECK(IsFloat(tensors.weights.dtype()));
  HALFSTEP_CHECK_GE(options.step, 1);
  HALFSTEP_DISPATCH(ctx, AdamW, tensors, options);
}

}  // namespace halfstep
