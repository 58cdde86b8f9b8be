// SPDX-License-Identifier: Apache-2.0
// What AdamW computes once for all parameters, the same for every backend.
#pragma once

#include <cmath>

#include "kernels/ops/optimizer.h"

namespace halfstep {

// In double, rounded once to FP32.
struct AdamWCoefficients {
  float inverse_scale;
  float clip_factor;
  float beta1;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float decay;                // learning_rate * weight_decay
  float step_size;            // learning_rate / (1 - beta1^t)
  float inverse_correction2;  // 1 / sqrt(1 - beta2^t)
  float epsilon;
};

inline AdamWCoefficients MakeAdamWCoefficients(const AdamWOptions& options) {
  const double t = static_cast<double>(options.step);
  const double beta1 = options.beta1;
  const double beta2 = options.beta2;
  AdamWCoefficients c;
  c.inverse_scale = options.inverse_scale;
  c.clip_factor = options.clip_factor;
  c.beta1 = options.beta1;
  c.one_minus_beta1 = static_cast<float>(1 - beta1);
  c.beta2 = options.beta2;
  c.one_minus_beta2 = static_cast<float>(1 - beta2);
  c.decay = static_cast<float>(double{options.learning_rate} * options.weight_decay);
  c.step_size = static_cast<float>(options.learning_rate / (1 - std::pow(beta1, t)));
  c.inverse_correction2 = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, t)));
  c.epsilon = options.epsilon;
  return c;
}

}  // namespace halfstep
