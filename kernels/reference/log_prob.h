// SPDX-License-Identifier: Apache-2.0
// Specification of kernels/ops/log_prob.h in double, on logits.
#pragma once

#include "kernels/tensor.h"

namespace halfstep::reference {

// logits: fp64 [rows, vocab]; targets: int32 [rows]; the others fp64 [rows].
void LogProb(ConstTensor logits, ConstTensor targets, double temperature, Tensor log_probs,
             Tensor entropy, Tensor lse);
void LogProbBackward(ConstTensor dlog_probs, ConstTensor logits, ConstTensor targets,
                     double temperature, Tensor dlogits);

}  // namespace halfstep::reference
