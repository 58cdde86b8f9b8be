// SPDX-License-Identifier: Apache-2.0
// Aggregations against sums written out, and their independence of micro-batches.
#include "learner_server/algorithm/aggregation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "learner_server/algorithm/policy_loss.h"

namespace halfstep {
namespace {

constexpr Aggregation kAggregations[] = {
    Aggregation::kTokenMean, Aggregation::kSequenceMeanTokenMean,
    Aggregation::kSequenceMeanTokenSum, Aggregation::kSequenceMeanTokenSumNorm};

constexpr int64_t kConstantLength = 16;

struct Response {
  std::vector<float> log_probs;
  std::vector<float> old_log_probs;
  double advantage = 0;
};

std::vector<Response> MakeResponses() {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> log_prob(-3.0f, -0.1f);
  std::normal_distribution<float> noise(0, 0.2f);
  std::vector<Response> responses;
  for (const int length : {1, 7, 3, 12, 1, 5, 16, 2}) {
    Response& response = responses.emplace_back();
    response.advantage = noise(random);
    for (int t = 0; t < length; ++t) {
      response.log_probs.push_back(log_prob(random));
      response.old_log_probs.push_back(response.log_probs.back() - noise(random));
    }
  }
  return responses;
}

LossDenominators CountsOf(const std::vector<Response>& responses) {
  LossDenominators counts{.constant_length = kConstantLength};
  for (const Response& response : responses) {
    counts.tokens += static_cast<int64_t>(response.log_probs.size());
    ++counts.sequences;
  }
  return counts;
}

TEST(AggregationTest, WeightsAreGlobalCounts) {
  const LossDenominators counts{.tokens = 40, .sequences = 4, .constant_length = 32};
  EXPECT_DOUBLE_EQ(TokenWeight(Aggregation::kTokenMean, counts, 5), 1.0 / 40);
  EXPECT_DOUBLE_EQ(TokenWeight(Aggregation::kSequenceMeanTokenMean, counts, 5), 1.0 / 20);
  EXPECT_DOUBLE_EQ(TokenWeight(Aggregation::kSequenceMeanTokenSum, counts, 5), 1.0 / 4);
  EXPECT_DOUBLE_EQ(TokenWeight(Aggregation::kSequenceMeanTokenSumNorm, counts, 5), 1.0 / 128);
}

TEST(AggregationTest, MeansGiveEveryTokenOrEverySequenceTheSameTotal) {
  const LossDenominators counts{.tokens = 12, .sequences = 3, .constant_length = 8};
  double token_mean = 0, sequence_mean = 0;
  for (const int64_t length : {2, 3, 7}) {
    token_mean +=
        static_cast<double>(length) * TokenWeight(Aggregation::kTokenMean, counts, length);
    sequence_mean += static_cast<double>(length) *
                     TokenWeight(Aggregation::kSequenceMeanTokenMean, counts, length);
  }
  EXPECT_DOUBLE_EQ(token_mean, 1);
  EXPECT_DOUBLE_EQ(sequence_mean, 1);
}

// Of -A log pi, with the means taken as their names say.
double Reference(Aggregation aggregation, const std::vector<Response>& responses) {
  double token_sum = 0, tokens = 0, means = 0;
  for (const Response& response : responses) {
    double sum = 0;
    for (const float log_prob : response.log_probs) sum -= response.advantage * log_prob;
    token_sum += sum;
    tokens += static_cast<double>(response.log_probs.size());
    means += sum / static_cast<double>(response.log_probs.size());
  }
  const double sequences = static_cast<double>(responses.size());
  switch (aggregation) {
    case Aggregation::kTokenMean:
      return token_sum / tokens;
    case Aggregation::kSequenceMeanTokenMean:
      return means / sequences;
    case Aggregation::kSequenceMeanTokenSum:
      return token_sum / sequences;
    case Aggregation::kSequenceMeanTokenSumNorm:
      return token_sum / sequences / kConstantLength;
  }
  return 0;
}

TEST(AggregationTest, LossIsTheMeanOfItsName) {
  const std::vector<Response> responses = MakeResponses();
  const LossDenominators counts = CountsOf(responses);
  for (const Aggregation aggregation : kAggregations) {
    PolicyLossStatistics statistics;
    for (const Response& response : responses) {
      std::vector<float> derivative(response.log_probs.size());
      const int64_t length = static_cast<int64_t>(response.log_probs.size());
      PolicyLoss(
          {},
          {response.log_probs, {}, response.advantage, TokenWeight(aggregation, counts, length)},
          derivative, &statistics);
    }
    EXPECT_NEAR(statistics.loss, Reference(aggregation, responses), 1e-12) << Name(aggregation);
  }
}

// Each micro-batch has its own statistics, as on several ranks; counts are those of the step.
TEST(AggregationTest, SplitIntoMicroBatchesChangesNeitherLossNorGradient) {
  const std::vector<Response> responses = MakeResponses();
  const LossDenominators counts = CountsOf(responses);
  for (const Objective objective : {Objective::kPpoClip, Objective::kGspo, Objective::kGmpo}) {
    for (const Aggregation aggregation : kAggregations) {
      double whole_loss = 0;
      std::vector<float> whole_gradient;
      for (const size_t micro_batch : {8, 1, 3, 5}) {
        double loss = 0;
        std::vector<float> gradient;
        for (size_t first = 0; first < responses.size(); first += micro_batch) {
          PolicyLossStatistics statistics;
          for (size_t i = first; i < std::min(first + micro_batch, responses.size()); ++i) {
            const Response& response = responses[i];
            const int64_t length = static_cast<int64_t>(response.log_probs.size());
            std::vector<float> derivative(response.log_probs.size());
            PolicyLoss(DefaultOptions(objective),
                       {response.log_probs, response.old_log_probs, response.advantage,
                        TokenWeight(aggregation, counts, length)},
                       derivative, &statistics);
            gradient.insert(gradient.end(), derivative.begin(), derivative.end());
          }
          loss += statistics.loss;
        }
        if (whole_gradient.empty()) {
          whole_loss = loss;
          whole_gradient = gradient;
        }
        EXPECT_NEAR(loss, whole_loss, 1e-15) << Name(objective) << " " << Name(aggregation);
        EXPECT_EQ(gradient, whole_gradient) << Name(objective) << " " << Name(aggregation);
      }
    }
  }
}

}  // namespace
}  // namespace halfstep
