// SPDX-License-Identifier: Apache-2.0
// Mismatch metrics against their formulas.
#include "learner_server/algorithm/mismatch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace halfstep {
namespace {

TEST(MismatchStatisticsTest, EqualLogProbsGiveExactZeros) {
  const std::vector<float> values{-0.5f, -2.25f, -1e-7f};
  MismatchStatistics statistics;
  statistics.Add(values, values);
  const MismatchMetrics metrics = statistics.Summarize();
  EXPECT_EQ(metrics.tokens_compared, 3);
  EXPECT_EQ(metrics.k1, 0);
  EXPECT_EQ(metrics.k2, 0);
  EXPECT_EQ(metrics.k3, 0);
  EXPECT_EQ(metrics.abs_max, 0);
  EXPECT_EQ(metrics.prob_diff_max, 0);
  EXPECT_EQ(metrics.sequence_kl, 0);
  EXPECT_EQ(metrics.slope_per_1000_tokens, 0);
  EXPECT_EQ(metrics.prob_correlation, 1);
  EXPECT_EQ(metrics.perplexity_ratio, 1);
  EXPECT_EQ(metrics.chi2_token, 0);
  EXPECT_EQ(metrics.chi2_sequence, 0);
  EXPECT_EQ(metrics.effective_sample_size, 1);
  EXPECT_EQ(metrics.weights_above_cap, 0);
  EXPECT_EQ(metrics.weights_below_cap, 0);
  EXPECT_EQ(metrics.bit_equal_share, 1);
}

TEST(MismatchStatisticsTest, FollowsTheFormulas) {
  // d = 0.5, -0.25 in one sequence and 0 in another.
  MismatchStatistics statistics;
  statistics.Add(std::vector<float>{-1.0f, -2.0f}, std::vector<float>{-1.5f, -1.75f});
  statistics.Add(std::vector<float>{-3.0f}, std::vector<float>{-3.0f});
  const MismatchMetrics metrics = statistics.Summarize();
  EXPECT_EQ(metrics.tokens_compared, 3);
  EXPECT_EQ(metrics.sequences, 2);
  EXPECT_DOUBLE_EQ(metrics.k1, -0.25 / 3);
  EXPECT_DOUBLE_EQ(metrics.k2, (0.25 + 0.0625) / 3 / 2);
  EXPECT_NEAR(metrics.k3, (std::exp(0.5) - 1.5 + std::exp(-0.25) - 0.75) / 3, 1e-12);
  EXPECT_DOUBLE_EQ(metrics.abs_mean, 0.25);
  EXPECT_DOUBLE_EQ(metrics.abs_max, 0.5);
  EXPECT_DOUBLE_EQ(metrics.abs_p99, 0.5);
  EXPECT_NEAR(metrics.prob_diff_max, std::exp(-1.0) - std::exp(-1.5), 1e-12);
  EXPECT_DOUBLE_EQ(metrics.sequence_sum_mean, 0.125);
  EXPECT_DOUBLE_EQ(metrics.sequence_abs_sum_mean, 0.125);
  EXPECT_DOUBLE_EQ(metrics.bit_equal_share, 1.0 / 3);
}

// d = 0.5, -0.25, 0 and -1, 1; the numbers are from the formulas, in Python.
TEST(MismatchStatisticsTest, WeightsAndSequencesFollowTheFormulas) {
  MismatchStatistics statistics;
  statistics.Add(std::vector<float>{-1.0f, -2.0f, -0.5f}, std::vector<float>{-1.5f, -1.75f, -0.5f});
  statistics.Add(std::vector<float>{-3.0f, -0.25f}, std::vector<float>{-2.0f, -1.25f});
  const MismatchMetrics metrics = statistics.Summarize();
  EXPECT_NEAR(metrics.sequence_kl, 0.6318416617010103, 1e-12);
  EXPECT_NEAR(metrics.slope_per_1000_tokens, 250, 1e-9);
  EXPECT_NEAR(metrics.prob_correlation, 0.6500598237059387, 1e-12);
  EXPECT_NEAR(metrics.perplexity_ratio, 0.9600222073146616, 1e-12);
  EXPECT_NEAR(metrics.chi2_token, 1.3698407740677885, 1e-12);
  EXPECT_NEAR(metrics.chi2_sequence, 0.3243606353500641, 1e-12);
  EXPECT_NEAR(metrics.effective_sample_size, 0.8195052135872297, 1e-12);
  EXPECT_DOUBLE_EQ(metrics.weights_above_cap, 0.2);
  EXPECT_DOUBLE_EQ(metrics.weights_below_cap, 0.2);
}

TEST(MismatchStatisticsTest, HugeDifferencesStayFinite) {
  MismatchStatistics statistics;
  statistics.Add(std::vector<float>{-1.0f, -1.0f}, std::vector<float>{-601.0f, -601.0f});
  const MismatchMetrics metrics = statistics.Summarize();
  EXPECT_DOUBLE_EQ(metrics.chi2_token, std::expm1(40.0));
  EXPECT_DOUBLE_EQ(metrics.chi2_sequence, std::expm1(40.0));
  EXPECT_DOUBLE_EQ(metrics.perplexity_ratio, std::exp(-20.0));
  EXPECT_EQ(metrics.effective_sample_size, 1);
}

TEST(MismatchStatisticsTest, P99LeavesOutOneInAHundred) {
  std::vector<float> learner(200, -1.0f), behaviour(200, -1.0f);
  learner[7] = 0.0f;
  learner[100] = -0.5f;
  learner[150] = -0.75f;
  MismatchStatistics statistics;
  statistics.Add(learner, behaviour);
  EXPECT_FLOAT_EQ(statistics.Summarize().abs_p99, 0.25f);
}

TEST(MismatchStatisticsTest, MergedResponsesAreLikeAddedOnes) {
  const std::vector<std::vector<float>> learner = {{-1.0f, -2.0f, -0.5f}, {-3.0f, -0.25f}, {-9.0f}};
  const std::vector<std::vector<float>> behaviour = {
      {-1.5f, -1.75f, -0.5f}, {-2.0f, -1.25f}, {-6.0f}};
  MismatchStatistics added, merged;
  for (size_t i = 0; i < learner.size(); ++i) {
    added.Add(learner[i], behaviour[i]);
    MismatchStatistics one;
    one.Add(learner[i], behaviour[i]);
    merged.Merge(one);
  }
  merged.Merge(MismatchStatistics());
  const MismatchMetrics a = added.Summarize();
  const MismatchMetrics b = merged.Summarize();
  EXPECT_EQ(a.tokens_compared, b.tokens_compared);
  EXPECT_EQ(a.sequences, b.sequences);
  EXPECT_EQ(a.abs_max, b.abs_max);
  EXPECT_EQ(a.abs_p99, b.abs_p99);
  EXPECT_EQ(a.prob_diff_max, b.prob_diff_max);
  EXPECT_EQ(a.bit_equal_share, b.bit_equal_share);
  EXPECT_EQ(a.weights_above_cap, b.weights_above_cap);
  EXPECT_EQ(a.weights_below_cap, b.weights_below_cap);
  const auto near = [&](double MismatchMetrics::*metric) {
    EXPECT_NEAR(a.*metric, b.*metric, 1e-12 * std::abs(a.*metric));
    EXPECT_NE(a.*metric, 0) << "nothing was compared";
  };
  near(&MismatchMetrics::k1);
  near(&MismatchMetrics::k2);
  near(&MismatchMetrics::k3);
  near(&MismatchMetrics::abs_mean);
  near(&MismatchMetrics::prob_diff_mean);
  near(&MismatchMetrics::sequence_sum_mean);
  near(&MismatchMetrics::sequence_abs_sum_mean);
  near(&MismatchMetrics::sequence_kl);
  near(&MismatchMetrics::slope_per_1000_tokens);
  near(&MismatchMetrics::prob_correlation);
  near(&MismatchMetrics::perplexity_ratio);
  near(&MismatchMetrics::chi2_token);
  near(&MismatchMetrics::chi2_sequence);
  near(&MismatchMetrics::effective_sample_size);
}

TEST(MismatchStatisticsTest, MergedEqualLogProbsCorrelateExactly) {
  MismatchStatistics merged;
  for (const std::vector<float>& values :
       {std::vector<float>{-0.1f, -2.3f}, {-0.7f}, {-1.9f, -0.3f}}) {
    MismatchStatistics one;
    one.Add(values, values);
    merged.Merge(one);
  }
  EXPECT_EQ(merged.Summarize().prob_correlation, 1);
}

TEST(MismatchBoundTest, BitwiseAllowsNone) {
  EXPECT_EQ(MismatchBound(Profile::kBitwise), 0);
  EXPECT_GT(MismatchBound(Profile::kFast), 0);
}

TEST(MismatchStatisticsTest, NothingComparedIsNoMismatch) {
  const MismatchMetrics metrics = MismatchStatistics().Summarize();
  EXPECT_EQ(metrics.tokens_compared, 0);
  EXPECT_EQ(metrics.abs_max, 0);
  EXPECT_EQ(metrics.bit_equal_share, 1);
}

}  // namespace
}  // namespace halfstep
