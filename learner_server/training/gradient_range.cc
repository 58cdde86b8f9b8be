// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/gradient_range.h"

#include <algorithm>
#include <cmath>

#include "kernels/host_copy.h"
#include "kernels/ops/linear.h"
#include "kernels/workspace.h"
#include "learner_server/training/range_check.h"

namespace halfstep {
namespace {

constexpr double kHeadroom = 4;
constexpr int64_t kLogitRows = 64;  // at a time; the backward has as many or more

// All on the host. Of dL/dlogits of one row that has an entropy term; not finite where an element
// is not.
double LargestOfRow(const LogitGradient& gradient, int64_t row, ConstTensor logits) {
  const double temperature = gradient.temperature;
  const double dlog_prob = gradient.dlog_probs.as<float>()[row];
  const double weight = gradient.entropy.weights.as<float>()[row];
  const double entropy = gradient.entropy.entropy.as<float>()[row];
  const double lse = gradient.lse.as<float>()[row];
  const int32_t target = gradient.targets.as<int32_t>()[row];
  double largest = 0;
  for (int64_t j = 0; j < logits.elements(); ++j) {
    const double log_p = logits.as<float>()[j] / temperature - lse;
    const double p = std::exp(log_p);
    const double element =
        (dlog_prob * ((j == target ? 1 : 0) - p) + weight * p * (log_p + entropy)) / temperature;
    if (!std::isfinite(element)) return element;
    largest = std::max(largest, std::abs(element));
  }
  return largest;
}

}  // namespace

double FittingFactor(double largest) {
  return std::exp2(std::ceil(std::log2(kFloat16Max / kHeadroom / largest)) - 1);
}

void GradientRange::Watch() {
  watching_ = true;
  largest_ = 0;
  first_non_finite_.clear();
}

void GradientRange::AddLogits(const ExecContext& ctx, const LogitGradient& gradient) {
  if (!watching_) return;
  const int64_t rows = gradient.dlog_probs.elements();
  const HostCopy dlog_probs(gradient.dlog_probs);
  if (gradient.entropy.weights.empty()) {
    for (int64_t row = 0; row < rows; ++row) {
      const double dlog_prob = dlog_probs.view().as<float>()[row];
      AddLogitRow(std::abs(dlog_prob) / gradient.temperature);
    }
    return;
  }
  const HostCopy targets(gradient.targets), lse(gradient.lse);
  const HostCopy weights(gradient.entropy.weights), entropy(gradient.entropy.entropy);
  LogitGradient on_host = gradient;
  on_host.targets = targets.view();
  on_host.lse = lse.view();
  on_host.dlog_probs = dlog_probs.view();
  on_host.entropy = {.weights = weights.view(), .entropy = entropy.view()};
  Workspace::Scope scope(ctx.workspace);
  const Tensor logits =
      scope.Take(DType::kFloat32, {std::min(rows, kLogitRows), gradient.head.weight.dim(0)});
  for (int64_t begin = 0; begin < rows; begin += kLogitRows) {
    const int64_t count = std::min(kLogitRows, rows - begin);
    Linear(ctx, gradient.hidden.Rows(begin, count), gradient.head, logits.Rows(0, count));
    const HostCopy computed(logits.Rows(0, count));
    for (int64_t i = 0; i < count; ++i) {
      AddLogitRow(LargestOfRow(on_host, begin + i, computed.view().Rows(i, 1)));
    }
  }
}

void GradientRange::AddLogitRow(double largest) {
  const bool fp16 = logits_ == DType::kFloat16;
  const bool held = std::isfinite(largest) && (!fp16 || largest <= kFloat16Max);
  if (held && fp16) largest_ = std::max(largest_, largest);
  if (!held && first_non_finite_.empty()) first_non_finite_ = "logits";
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
