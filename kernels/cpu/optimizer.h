// SPDX-License-Identifier: Apache-2.0
// CPU backend of kernels/ops/optimizer.h. Shapes were checked by the caller.
#pragma once

#include "kernels/exec_context.h"
#include "kernels/ops/optimizer.h"
#include "kernels/tensor.h"

namespace halfstep::cpu {

GradientStatistics ComputeGradientStatistics(const ExecContext& ctx, ConstTensor gradient);
void MeasureGradient(const ExecContext& ctx, ConstTensor gradient, Tensor statistics);
void DecideGradient(const ExecContext& ctx, ConstTensor statistics, const GradientLimits& limits,
                    Tensor decision);
void AdamW(const ExecContext& ctx, const AdamWTensors& tensors, const AdamWOptions& options);

}  // namespace halfstep::cpu
