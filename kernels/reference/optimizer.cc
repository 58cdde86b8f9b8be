// SPDX-License-Identifier: Apache-2.0
#include "kernels/reference/optimizer.h"

#include <cmath>

namespace halfstep::reference {

void AdamW(const AdamWTensors& tensors, const AdamWOptions& options) {
  const double* gradient = tensors.gradient.as<double>();
  double* master = tensors.master.as<double>();
  double* m = tensors.first_moment.as<double>();
  double* v = tensors.second_moment.as<double>();
  const double lr = options.learning_rate;
  const double beta1 = options.beta1;
  const double beta2 = options.beta2;
  const double correction1 = 1 - std::pow(beta1, static_cast<double>(options.step));
  const double correction2 = 1 - std::pow(beta2, static_cast<double>(options.step));
  for (int64_t i = 0; i < tensors.master.elements(); ++i) {
    const double g = gradient[i] * options.inverse_scale * options.clip_factor;
    m[i] = beta1 * m[i] + (1 - beta1) * g;
    v[i] = beta2 * v[i] + (1 - beta2) * g * g;
    master[i] -= lr * options.weight_decay * master[i];
    master[i] -= lr * (m[i] / correction1) / (std::sqrt(v[i] / correction2) + options.epsilon);
  }
}

}  // namespace halfstep::reference
