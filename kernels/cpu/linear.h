// SPDX-License-Identifier: Apache-2.0
// CPU backend of kernels/ops/linear.h. Shapes were checked by the caller.
//
// A packed weight is a row of panels of 32 output features (the last one is 16 or 32 wide, padded
// with zeros): panel p holds weight[32 p + c, i] at element 32 p * in_features + i * width + c, so
// a product reads memory in one ascending stream.
#pragma once

#include <cstddef>

#include "kernels/exec_context.h"
#include "kernels/ops/linear.h"
#include "kernels/tensor.h"

namespace halfstep::cpu {

inline constexpr int64_t kPanelColumns = 32;
inline constexpr int64_t kPanelAlignment = 16;

size_t PackedLinearBytes(DType dtype, int64_t out_features, int64_t in_features);
void PackLinear(const ExecContext& ctx, ConstTensor weight, Tensor packed);
void Linear(const ExecContext& ctx, ConstTensor x, const LinearWeight& weight, Tensor y);
void LinearBackwardInput(const ExecContext& ctx, ConstTensor dy, const LinearWeight& weight,
                         Tensor dx);
void LinearBackwardWeight(const ExecContext& ctx, ConstTensor dy, ConstTensor x, Tensor dweight,
                          Tensor dbias);

}  // namespace halfstep::cpu
