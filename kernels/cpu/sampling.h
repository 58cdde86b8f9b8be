// SPDX-License-Identifier: Apache-2.0
// CPU backend of kernels/ops/sampling.h. Shapes were checked by the caller.
#pragma once

#include <span>

#include "kernels/exec_context.h"
#include "kernels/ops/sampling.h"
#include "kernels/tensor.h"

namespace halfstep::cpu {

void SampleTokens(const ExecContext& ctx, ConstTensor logits, std::span<const SamplingRow> rows,
                  Tensor tokens, Tensor log_probs);

}  // namespace halfstep::cpu
