// SPDX-License-Identifier: Apache-2.0
// Fp32Parts: what of a model stays FP32 although its weights and activations have 16 bits. With
// FP32 weights they change nothing.
#pragma once

#include "kernels/dtype.h"

namespace halfstep {

struct Fp32Parts {
  bool residual = false;  // the residual stream and its gradient
  bool head = false;      // the last hidden state, and the gradients of it and of the logits

  // Of the residual stream.
  DType residual_dtype(DType weights) const { return residual ? DType::kFloat32 : weights; }
  // Of the hidden states that the LM head reads.
  DType hidden_dtype(DType weights) const { return head ? DType::kFloat32 : weights; }

  friend bool operator==(const Fp32Parts&, const Fp32Parts&) = default;
};

}  // namespace halfstep
