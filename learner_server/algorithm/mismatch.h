// SPDX-License-Identifier: Apache-2.0
// How far the learner's log-probs are from the behaviour policy's: d = log pi - log mu over
// response tokens, pi at the weights that generated them, accumulated in FP64.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/exec_context.h"

namespace halfstep {

// The largest |d| of one token that is no sign of a fault: 0 in the bitwise profile; 1 in the fast
// one, where rounding alone gives hundredths in FP16 and tenths in BF16.
double MismatchBound(Profile profile);

struct MismatchMetrics {
  int64_t tokens_compared = 0;
  int64_t sequences = 0;
  double k1 = 0;        // mean(-d), an estimate of KL(mu || pi)
  double k2 = 0;        // mean(d^2) / 2
  double k3 = 0;        // mean(e^d - d - 1)
  double abs_mean = 0;  // of |d|
  double abs_p99 = 0;
  double abs_max = 0;
  double prob_diff_mean = 0;  // of |pi - mu|
  double prob_diff_max = 0;
  double sequence_sum_mean = 0;      // mean over sequences of sum d
  double sequence_abs_sum_mean = 0;  // mean over sequences of |sum d|
  double bit_equal_share = 1;        // tokens whose two log-probs are the same bits; 1 of none
};

// Not thread-safe.
class MismatchStatistics {
 public:
  // One response: learner's and behaviour log-probs, finite, of equal length.
  void Add(std::span<const float> learner, std::span<const float> behaviour);
  MismatchMetrics Summarize() const;

 private:
  std::vector<float> magnitudes_;  // |d| of each token
  int64_t sequences_ = 0;
  int64_t bit_equal_ = 0;
  double squares_ = 0;
  double k3_ = 0;
  double max_ = 0;
  double prob_diff_sum_ = 0;
  double prob_diff_max_ = 0;
  double sequence_sum_ = 0;
  double sequence_abs_sum_ = 0;
};

}  // namespace halfstep
