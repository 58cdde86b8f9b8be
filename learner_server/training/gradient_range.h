// SPDX-License-Identifier: Apache-2.0
// GradientRange: what a scaled backward stores, against what its dtype holds.
#pragma once

#include <cstdint>
#include <string>

#include "common/model/tensor_observer.h"
#include "kernels/dtype.h"
#include "kernels/exec_context.h"
#include "kernels/ops/log_prob.h"

namespace halfstep {

// The largest power of two by which gradients of magnitude `largest` (above 0) can be multiplied
// so that they stay below 65 504, the largest FP16 number, with two powers of two to spare.
double FittingFactor(double largest);

// What LmHeadLogProbBackward computes dL/dlogits from, in the shapes that it takes.
struct LogitGradient {
  ConstTensor hidden;
  LinearWeight head;
  ConstTensor targets;
  float temperature = 1;
  ConstTensor lse;
  ConstTensor dlog_probs;  // scaled
  EntropyTerm entropy;     // likewise
};

// Looks at the activation gradients of every backward between Watch and Ignore, and at nothing
// else, so that it costs nothing while it is not asked. Not thread-safe.
class GradientRange final : public TensorObserver {
 public:
  // Of a model with so many layers; the gradients of its logits are stored in `logits`.
  GradientRange(DType logits, int64_t layers) : logits_(logits), layers_(layers) {}

  // Forgets what was seen and begins.
  void Watch();
  void Ignore() { watching_ = false; }

  // Of dL/dlogits the kernel keeps a few rows at a time. Where a row has no entropy term, its
  // scaled dL/d(log-prob) over the temperature, which no element exceeds, stands for it; where it
  // has one, its logits are computed once more.
  void AddLogits(const ExecContext& ctx, const LogitGradient& gradient);
  void Observe(StoredPass pass, StoredKind kind, int64_t layer, ConstTensor values) override;

  // The largest finite magnitude of what FP16 holds.
  double largest() const { return largest_; }
  // The first gradient, in the order of the backward, with an Inf or NaN: "logits", or layer and
  // kind of the activation, such as "layer 3, gate_up". Empty: all are finite.
  const std::string& first_non_finite() const { return first_non_finite_; }

 private:
  void AddLogitRow(double largest);

  const DType logits_;
  const int64_t layers_;
  bool watching_ = false;
  double largest_ = 0;
  std::string first_non_finite_;
};

}  // namespace halfstep
