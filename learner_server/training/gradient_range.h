// SPDX-License-Identifier: Apache-2.0
// GradientRange: what a scaled backward stores, against what its dtype holds.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "common/model/tensor_observer.h"
#include "kernels/dtype.h"

namespace halfstep {

// The largest power of two by which gradients of magnitude `largest` (above 0) can be multiplied
// so that they stay below 65 504, the largest FP16 number, with two powers of two to spare.
double FittingFactor(double largest);

// Looks at the activation gradients of every backward between Watch and Ignore, and at nothing
// else, so that it costs nothing while it is not asked. Not thread-safe.
class GradientRange final : public TensorObserver {
 public:
  // Of a model with so many layers; the gradients of its logits are stored in `logits`.
  GradientRange(DType logits, int64_t layers) : logits_(logits), layers_(layers) {}

  // Forgets what was seen and begins.
  void Watch();
  void Ignore() { watching_ = false; }

  // The gradient of a token's logits, of which the kernel stores the rows one by one: but for an
  // entropy bonus no element is larger than its scaled dL/d(log-prob) over the temperature.
  void AddLogits(std::span<const float> dlog_probs, float temperature);
  void Observe(StoredPass pass, StoredKind kind, int64_t layer, ConstTensor values) override;

  // The largest finite magnitude of what FP16 holds.
  double largest() const { return largest_; }
  // The first gradient, in the order of the backward, with an Inf or NaN: "logits", or layer and
  // kind of the activation, such as "layer 3, gate_up". Empty: all are finite.
  const std::string& first_non_finite() const { return first_non_finite_; }

 private:
  const DType logits_;
  const int64_t layers_;
  bool watching_ = false;
  double largest_ = 0;
  std::string first_non_finite_;
};

}  // namespace halfstep
