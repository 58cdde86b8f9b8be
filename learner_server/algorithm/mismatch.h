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
  // Mean over sequences of sum (e^d - 1 - d): an estimate of the KL of whole responses, without
  // bias and never negative, since E[e^d - 1] is 0 at each token.
  double sequence_kl = 0;
  // Least-squares slope of sum d against the tokens of a sequence, times 1000 (arXiv 2510.26788,
  // the drift of log pi / mu with length); 0 when all are as long.
  double slope_per_1000_tokens = 0;
  double prob_correlation = 1;  // Pearson's, of pi and mu over tokens; 1 where one does not vary
  // As verl's rollout correction has them, with exponents clamped to +-20 as there:
  double perplexity_ratio = 1;  // mean over sequences of exp(mean(-d))
  double chi2_token = 0;        // mean(e^2d) - 1
  double chi2_sequence = 0;     // mean over sequences of e^(2 sum d) - 1
  // (mean w)^2 / mean(w^2), with w = e^d clamped to [1 / kWeightCap, kWeightCap].
  double effective_sample_size = 1;
  double weights_above_cap = 0;  // share of tokens with e^d > kWeightCap
  double weights_below_cap = 0;  // with e^d < 1 / kWeightCap
  double bit_equal_share = 1;    // tokens whose two log-probs are the same bits; 1 of none
};

// The customary bound of importance weights (verl's rollout_is_threshold).
inline constexpr double kWeightCap = 2;

// Running moments of pairs (Welford's update), so that small variances of large means survive.
struct Covariance {
  double count = 0;
  double mean_x = 0;
  double mean_y = 0;
  double xx = 0;  // sums of products of deviations
  double yy = 0;
  double xy = 0;

  void Add(double x, double y);
  // As if the pairs of `other` were added (Chan, Golub and LeVeque's update).
  void Merge(const Covariance& other);
  // Of y on x; 0 where x does not vary.
  double Slope() const;
  // 1 where x or y does not vary.
  double Correlation() const;
};

// Not thread-safe.
class MismatchStatistics {
 public:
  // One response: learner's and behaviour log-probs, finite, of equal length.
  void Add(std::span<const float> learner, std::span<const float> behaviour);
  // Adds the responses of `other`. The sums may differ in their last bits from those of one Add
  // after the other.
  void Merge(const MismatchStatistics& other);
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
  double sequence_k3_ = 0;
  double perplexity_ratio_ = 0;
  double chi2_token_ = 0;
  double chi2_sequence_ = 0;
  double weight_sum_ = 0;
  double weight_squares_ = 0;
  int64_t above_cap_ = 0;
  int64_t below_cap_ = 0;
  Covariance probabilities_;  // of pi with mu
  Covariance lengths_;        // of a sequence's tokens with its sum d
};

}  // namespace halfstep
