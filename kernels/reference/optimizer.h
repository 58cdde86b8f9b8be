// SPDX-License-Identifier: Apache-2.0
// Specification of kernels/ops/optimizer.h in double; real tensors are fp64.
#pragma once

#include "kernels/ops/optimizer.h"
#include "kernels/tensor.h"

namespace halfstep::reference {

// tensors.weights is left alone: the cast is specified by kernels/dtype.h.
void AdamW(const AdamWTensors& tensors, const AdamWOptions& options);

}  // namespace halfstep::reference
