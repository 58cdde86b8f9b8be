// SPDX-License-Identifier: Apache-2.0
#include "kernels/reference/log_prob.h"

#include <algorithm>
#include <cmath>

#include "kernels/reference/access.h"

namespace halfstep::reference {
namespace {

double LogSumExp(const double* logits, int64_t vocab, double temperature) {
  const double max = *std::max_element(logits, logits + vocab) / temperature;
  double sum = 0;
  for (int64_t j = 0; j < vocab; ++j) sum += std::exp(logits[j] / temperature - max);
  return max + std::log(sum);
}

}  // namespace

void LogProb(ConstTensor logits, ConstTensor targets, double temperature, Tensor log_probs,
             Tensor entropy, Tensor lse) {
  const int64_t vocab = logits.dim(1);
  for (int64_t r = 0; r < logits.dim(0); ++r) {
    const double* const row = Row(logits, r);
    const double normalizer = LogSumExp(row, vocab, temperature);
    double h = 0;
    for (int64_t j = 0; j < vocab; ++j) {
      const double log_p = row[j] / temperature - normalizer;
      h -= std::exp(log_p) * log_p;
    }
    log_probs.as<double>()[r] = row[targets.as<int32_t>()[r]] / temperature - normalizer;
    entropy.as<double>()[r] = h;
    lse.as<double>()[r] = normalizer;
  }
}

void LogProbBackward(ConstTensor dlog_probs, ConstTensor logits, ConstTensor targets,
                     double temperature, Tensor dlogits) {
  const int64_t vocab = logits.dim(1);
  for (int64_t r = 0; r < logits.dim(0); ++r) {
    const double* const row = Row(logits, r);
    const double normalizer = LogSumExp(row, vocab, temperature);
    for (int64_t j = 0; j < vocab; ++j) {
      const double hit = j == targets.as<int32_t>()[r] ? 1 : 0;
      const double p = std::exp(row[j] / temperature - normalizer);
      Row(dlogits, r)[j] = dlog_probs.as<double>()[r] * (hit - p) / temperature;
    }
  }
}

}  // namespace halfstep::reference
