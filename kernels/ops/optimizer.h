// SPDX-License-Identifier: Apache-2.0
// Gradient statistics and AdamW over flat FP32 arenas.
#pragma once

#include <cstdint>

#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep {

// One pass over a gradient, nothing mutated.
struct GradientStatistics {
  double squared_norm = 0;  // of the values as they are (scaled); fixed tree over fixed chunks
  int64_t non_finite = 0;   // count of Inf and NaN
  float largest = 0;        // largest finite magnitude
};
GradientStatistics ComputeGradientStatistics(const ExecContext& ctx, ConstTensor gradient);

// Loshchilov & Hutter, arXiv 1711.05101, with bias correction.
struct AdamWOptions {
  float learning_rate = 0;
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float epsilon = 1e-15f;
  float weight_decay = 0;   // decoupled: master -= learning_rate * weight_decay * master
  int64_t step = 1;         // t, counted from 1
  float inverse_scale = 1;  // exact reciprocal of the loss scale, applied first
  float clip_factor = 1;    // min(1, clip / norm), applied to the unscaled gradient
};

// All flat and of equal length: gradient FP32 (read only), master, first and second moment FP32
// (updated), weights (overwritten): the master in their dtype, one RNE cast.
struct AdamWTensors {
  ConstTensor gradient;
  Tensor master;
  Tensor first_moment;
  Tensor second_moment;
  Tensor weights;
};
void AdamW(const ExecContext& ctx, const AdamWTensors& tensors, const AdamWOptions& options);

}  // namespace halfstep
