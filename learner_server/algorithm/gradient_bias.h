// SPDX-License-Identifier: Apache-2.0
// Bias and variance of gradient estimators, from what each of them gave on the same independent
// batches.
//
// With g_b the gradient of batch b, N batches and S their sum, without bias:
//   ||E g||^2  =  (||S||^2 - sum of ||g_b||^2) / (N (N - 1)), the mean of g_a . g_b over pairs of
//                 different batches (a U-statistic, Hoeffding 1948). The norm of the mean itself
//                 would be too large by tr Cov(g) / N, which of policy gradients is most of it.
//   tr Cov(g)  =  (sum of ||g_b||^2 - ||S||^2 / N) / (N - 1)
// Both hold for every linear combination of estimators, above all for the difference of two that
// saw the same draws, whose variance may be a small part of theirs.
//
// Intervals are two standard errors of the jackknife over batches to either side (Efron and Stein
// 1981). Of a squared norm that is really 0 that error is too large by about a root of two, so a
// bias that an interval keeps away from 0 was seen.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "learner_server/algorithm/mismatch_bootstrap.h"

namespace halfstep {

// Shared, because estimators often agree to the last bit.
using SharedGradient = std::shared_ptr<const std::vector<float>>;

// Products between every two of a few estimators, [estimator, estimator] and symmetric.
struct GradientMoments {
  int64_t batches = 0;
  std::vector<double> of_sums;  // S_i . S_j
  std::vector<double> within;   // sum over batches of g_i . g_j
};

// The estimator that is the sum of coefficient times gradient.
using Combination = std::vector<double>;

// Estimates E[u] . E[v]; at least two batches.
double MeanProduct(const GradientMoments& moments, const Combination& u, const Combination& v);
// Estimates tr Cov(u); at least two batches.
double TotalVariance(const GradientMoments& moments, const Combination& u);

struct JackknifeMoments {
  GradientMoments all;
  std::vector<GradientMoments> without;       // element b: of all batches but b
  std::vector<std::vector<double>> of_batch;  // element b: g_i . g_j of batch b
};

// Element [b][i] of `batches` is what estimator i gave on batch b; all are equally long, and there
// are at least three batches. Sums are FP64 in a fixed order, so equal gradients have equal
// products.
JackknifeMoments ComputeGradientMoments(std::span<const std::vector<SharedGradient>> batches);

// `figure` of all batches, with its interval.
Interval Jackknife(const JackknifeMoments& moments,
                   const std::function<double(const GradientMoments&)>& figure);

// Batches in which the combination is not exactly zero. What comes of a few, of rare events that
// is, has no interval to be trusted: the estimate needs two batches with such an event to be other
// than 0.
int64_t BatchesApart(const JackknifeMoments& moments, const Combination& combination);
inline constexpr int64_t kFewestBatchesApart = 10;

// The square root of an interval of squares, of which what is negative counts as 0.
Interval RootOf(const Interval& squares);

struct BiasFigure {
  Interval norm;
  int64_t batches_apart = 0;  // that it rests on; below kFewestBatchesApart the interval is void
};

// One estimator against the exact gradient g*. Norms are in units of ||g*||.
struct GradientFigures {
  // ||E g - g*||, from the difference to the gradients of samples of the exact policy.
  BiasFigure bias;
  // The same from the difference to an estimator without bias on the same samples.
  BiasFigure paired_bias;
  Interval cosine;          // of E g and g*
  Interval deviation;       // sqrt(tr Cov(g))
  Interval variance_ratio;  // of tr Cov(g) to that of the exact policy's samples
};

// Which estimator plays which part.
struct GradientRoles {
  size_t exact = 0;     // samples of the exact policy: its expectation is g*
  size_t unbiased = 0;  // another one that has the expectation g*
};

// ||g*|| with its interval; not in units of itself.
Interval ExactNorm(const JackknifeMoments& moments, const GradientRoles& roles);

// Nothing where the interval of ||g*|| begins at 0: figures relative to it would say nothing.
std::optional<GradientFigures> DescribeEstimator(const JackknifeMoments& moments, size_t estimator,
                                                 const GradientRoles& roles);

}  // namespace halfstep
