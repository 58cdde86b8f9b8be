// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/gradient_range.h"

#include <algorithm>
#include <cmath>

#include "learner_server/training/range_check.h"

namespace halfstep {
namespace {

constexpr double kHeadroom = 4;

}  // namespace

double FittingFactor(double largest) {
  return std::exp2(std::ceil(std::log2(kFloat16Max / kHeadroom / largest)) - 1);
}

void GradientRange::Watch() {
  watching_ = true;
  largest_ = 0;
  first_non_finite_.clear();
}

void GradientRange::AddLogits(std::span<const float> dlog_probs, float temperature) {
  if (!watching_) return;
  for (const float dlog_prob : dlog_probs) {
    const double bound = std::abs(static_cast<double>(dlog_prob)) / temperature;
    const bool fp16 = logits_ == DType::kFloat16;
    const bool held = std::isfinite(bound) && (!fp16 || bound <= kFloat16Max);
    if (held && fp16) largest_ = std::max(largest_, bound);
    if (!held && first_non_finite_.empty()) first_non_finite_ = "logits";
  }
}

void GradientRange::Observe(StoredPass pass, StoredKind kind, int64_t layer, ConstTensor values) {
  if (!watching_ || pass != StoredPass::kBackward) return;
  RangeStatistics statistics;
  statistics.Add(values);
  if (values.dtype() == DType::kFloat16) largest_ = std::max(largest_, statistics.largest);
  if (statistics.non_finite > 0 && first_non_finite_.empty()) {
    first_non_finite_ = PlaceName({layer, kind}, layers_);
  }
}

}  // namespace halfstep
