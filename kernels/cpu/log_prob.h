// SPDX-License-Identifier: Apache-2.0
// CPU backend of kernels/ops/log_prob.h. Shapes were checked by the caller.
#pragma once

#include "kernels/exec_context.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/log_prob.h"
#include "kernels/tensor.h"

namespace halfstep::cpu {

void LmHeadLogProb(const ExecContext& ctx, ConstTensor hidden, const LinearWeight& head,
                   ConstTensor targets, float temperature, Tensor log_probs, Tensor entropy,
                   Tensor lse);
void LmHeadLogProbBackward(const ExecContext& ctx, ConstTensor dlog_probs, ConstTensor hidden,
                           const LinearWeight& head, ConstTensor targets, float temperature,
                           ConstTensor lse, Tensor dhidden, Tensor dhead,
                           const EntropyTerm& entropy_term);

}  // namespace halfstep::cpu
