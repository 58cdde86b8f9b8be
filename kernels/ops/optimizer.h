// SPDX-License-Identifier: Apache-2.0
// Gradient statistics and AdamW over flat FP32 arenas.
//
// A caller that decides on the host calls ComputeGradientStatistics and AdamW. One that must not
// wait for the device leaves the decision there: MeasureGradient, DecideGradient and AdamW with
// AdamWTensors::decision, and reads the decision when it has time to.
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
// Those of a gradient whose parts have `a` and `b`.
constexpr GradientStatistics Together(const GradientStatistics& a, const GradientStatistics& b) {
  return {a.squared_norm + b.squared_norm, a.non_finite + b.non_finite,
          a.largest < b.largest ? b.largest : a.largest};
}
// Waits for the device of the context.
GradientStatistics ComputeGradientStatistics(const ExecContext& ctx, ConstTensor gradient);

// The same values, where the tensors are: `statistics` is memory of one GradientStatistics as uint8
// [sizeof(GradientStatistics)], aligned to 8 bytes.
void MeasureGradient(const ExecContext& ctx, ConstTensor gradient, Tensor statistics);

struct GradientLimits {
  float inverse_scale = 1;  // exact reciprocal of the loss scale
  double clip_norm = 0;     // largest norm of the unscaled gradient; 0: no limit
};

// What an optimizer step does with its gradient.
struct GradientDecision {
  GradientStatistics statistics;  // of the whole gradient
  double norm = 0;                // unscaled, before clipping; 0 when skipped
  float inverse_scale = 1;
  float clip_factor = 1;  // min(1, clip_norm / norm)
  int32_t skip = 0;       // 1: some gradient is not finite
};

// `root` is sqrt(statistics.squared_norm), which each backend has its own function for.
constexpr GradientDecision MakeGradientDecision(const GradientStatistics& statistics, double root,
                                                const GradientLimits& limits) {
  GradientDecision decision;
  decision.statistics = statistics;
  decision.inverse_scale = limits.inverse_scale;
  if (statistics.non_finite != 0) {
    decision.skip = 1;
    return decision;
  }
  decision.norm = root * limits.inverse_scale;
  if (limits.clip_norm > 0 && decision.norm > limits.clip_norm) {
    decision.clip_factor = static_cast<float>(limits.clip_norm / decision.norm);
  }
  return decision;
}

// `statistics`: uint8 [parts, sizeof(GradientStatistics)], those of the parts of one gradient (such
// as the shards of several ranks), put together in their order. `decision`: memory of one
// GradientDecision as uint8 [sizeof(GradientDecision)]. Both aligned to 8 bytes.
void DecideGradient(const ExecContext& ctx, ConstTensor statistics, const GradientLimits& limits,
                    Tensor decision);

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
  // Of DecideGradient: its inverse_scale and clip_factor take the place of the options', and where
  // it says skip, no byte changes. Empty: what the options say.
  ConstTensor decision = {};
};
void AdamW(const ExecContext& ctx, const AdamWTensors& tensors, const AdamWOptions& options);

}  // namespace halfstep
