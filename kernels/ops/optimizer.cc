// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/optimizer.h"

#include "kernels/cpu/optimizer.h"
#include "kernels/dispatch.h"

namespace halfstep {
namespace {

// Memory of `count` records of `bytes` each, as every backend reads them.
void CheckRecords(ConstTensor x, int64_t count, size_t bytes) {
  HALFSTEP_CHECK(x.dtype() == DType::kUInt8);
  HALFSTEP_CHECK_EQ(x.elements(), count * static_cast<int64_t>(bytes));
  HALFSTEP_CHECK_EQ(reinterpret_cast<uintptr_t>(x.data()) % 8, size_t{0});
}

}  // namespace

GradientStatistics ComputeGradientStatistics(const ExecContext& ctx, ConstTensor gradient) {
  HALFSTEP_CHECK(gradient.empty() || gradient.dtype() == DType::kFloat32);
  HALFSTEP_DISPATCH(ctx, ComputeGradientStatistics, gradient);
}

void MeasureGradient(const ExecContext& ctx, ConstTensor gradient, Tensor statistics) {
  HALFSTEP_CHECK(gradient.empty() || gradient.dtype() == DType::kFloat32);
  CheckRecords(statistics, 1, sizeof(GradientStatistics));
  HALFSTEP_DISPATCH(ctx, MeasureGradient, gradient, statistics);
}

void DecideGradient(const ExecContext& ctx, ConstTensor statistics, const GradientLimits& limits,
                    Tensor decision) {
  HALFSTEP_CHECK_EQ(statistics.rank(), 2);
  CheckRecords(statistics, statistics.dim(0), sizeof(GradientStatistics));
  CheckRecords(decision, 1, sizeof(GradientDecision));
  HALFSTEP_DISPATCH(ctx, DecideGradient, statistics, limits, decision);
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
  if (!tensors.decision.empty()) CheckRecords(tensors.decision, 1, sizeof(GradientDecision));
  HALFSTEP_DISPATCH(ctx, AdamW, tensors, options);
}

}  // namespace halfstep
