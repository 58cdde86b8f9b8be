// SPDX-License-Identifier: Apache-2.0
// Advantages, losses, gradients and weights against what verl's and TRL's own functions gave
// (tests/golden/make_algorithm_golden.py, which also lists what has no counterpart there).
//
// Where those differ from the papers, ours follow the papers or the bounds that hold for all our
// log-ratios, and the cases avoid the difference:
//   * verl whitens over tokens, so that long responses weigh more: its cases have one token each.
//   * verl's gspo clamps log s at 10 from above alone, its gmpo, dro and TRL's losses clamp none.
//   * verl clamps k3 to 10; TRL does not.
//   * verl gives a gspo token its own correction and gmpo the geometric mean of the corrections:
//     gspo is compared with weights of whole responses alone, gmpo with none.
//   * verl's k1 mask bounds e^(-mean d), and its rejected tokens leave the denominators: masks are
//     compared, not the losses after them.
//   * TRL's group deviation has +1e-4 (ours and verl's +1e-6), inside a method that also generates.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "learner_server/algorithm/advantage.h"
#include "learner_server/algorithm/aggregation.h"
#include "learner_server/algorithm/correction.h"
#include "learner_server/algorithm/policy_loss.h"
#include "learner_server/algorithm/regularizer.h"

namespace halfstep {
namespace {

using Json = nlohmann::json;

constexpr double kTolerance = 1e-6;  // relative
constexpr int64_t kConstantLength = 16;

Json Golden(const std::string& name) {
  const std::string path =
      std::string(std::getenv("HALFSTEP_SOURCE_DIR")) + "/tests/golden/algorithm/" + name + ".json";
  std::ifstream in(path);
  EXPECT_TRUE(in) << path;
  return Json::parse(in);
}

void ExpectClose(double got, double want, const std::string& what) {
  EXPECT_NEAR(got, want, kTolerance * std::abs(want) + 1e-12) << what;
}

template <class Enum>
Enum FromName(const std::string& name, int last) {
  for (int i = 0; i <= last; ++i) {
    if (name == Name(static_cast<Enum>(i))) return static_cast<Enum>(i);
  }
  ADD_FAILURE() << name;
  return Enum{};
}

Objective ObjectiveOf(const std::string& name) {
  return FromName<Objective>(name, static_cast<int>(Objective::kDro));
}

CorrectionKind CorrectionOf(const std::string& name) {
  return FromName<CorrectionKind>(name, static_cast<int>(CorrectionKind::kVeto));
}

Aggregation AggregationOf(const std::string& name) {
  return FromName<Aggregation>(name, static_cast<int>(Aggregation::kSequenceMeanTokenSumNorm));
}

struct Response {
  double advantage;
  std::vector<float> log_probs, old_log_probs, behaviour, reference;
};

std::vector<Response> Responses(const Json& inputs) {
  std::vector<Response> responses;
  for (const Json& row : inputs) {
    responses.push_back({row.at("advantage"), row.at("new"), row.at("old"), row.at("behaviour"),
                         row.at("reference")});
  }
  return responses;
}

PolicyLossOptions OptionsOf(const Json& row) {
  PolicyLossOptions options = DefaultOptions(ObjectiveOf(row.at("objective")));
  if (row.contains("clip")) {
    options.clip_low = row.at("clip")[0];
    options.clip_high = row.at("clip")[1];
  }
  options.dual_clip = row.value("dual", 0.0);
  options.delta = row.value("delta", options.delta);
  options.beta = row.value("beta", options.beta);
  return options;
}

struct StepLoss {
  double loss = 0;
  std::vector<std::vector<float>> gradient;
};

StepLoss Evaluate(const Json& row, const std::vector<Response>& responses) {
  LossDenominators denominators{.constant_length = kConstantLength};
  for (const Response& response : responses) {
    denominators.tokens += static_cast<int64_t>(response.log_probs.size());
    ++denominators.sequences;
  }
  CorrectionOptions correction;
  if (row.contains("correction")) correction = DefaultCorrection(CorrectionOf(row["correction"]));
  KlOptions kl;
  if (row.contains("kl")) kl = {.estimator = KlEstimator::kK3, .coefficient = row["kl"][1]};
  StepLoss step;
  PolicyLossStatistics statistics;
  KlStatistics kl_statistics;
  for (const Response& response : responses) {
    const double weight = TokenWeight(AggregationOf(row.at("aggregation")), denominators,
                                      static_cast<int64_t>(response.log_probs.size()));
    std::vector<double> corrections(response.log_probs.size());
    CorrectionWeights(correction, response.old_log_probs, response.behaviour, corrections);
    std::vector<float>& gradient = step.gradient.emplace_back(response.log_probs.size());
    PolicyLoss(
        OptionsOf(row),
        {response.log_probs, response.old_log_probs, response.advantage, weight, corrections},
        gradient, &statistics);
    if (kl.coefficient > 0) {
      AddKlLoss(kl, {response.log_probs, response.reference, weight}, gradient, &kl_statistics);
    }
  }
  step.loss = statistics.loss + kl_statistics.loss;
  return step;
}

TEST(AlgorithmGoldenTest, LossesAndGradientsAreThePublishedOnes) {
  const Json inputs = Golden("inputs");
  std::set<std::string> objectives;
  for (const Json& row : Golden("losses")) {
    std::string what = row.at("function");
    what += " " + row.value("correction", "") + " " + std::string(row.at("inputs")) + " " +
            std::string(row.at("aggregation"));
    const StepLoss step = Evaluate(row, Responses(inputs.at(row.at("inputs"))));
    ExpectClose(step.loss, row.at("loss"), what);
    for (size_t i = 0; i < step.gradient.size(); ++i) {
      ASSERT_EQ(step.gradient[i].size(), row.at("gradient")[i].size());
      for (size_t t = 0; t < step.gradient[i].size(); ++t) {
        ExpectClose(step.gradient[i][t], row.at("gradient")[i][t],
                    what + " response " + std::to_string(i) + " token " + std::to_string(t));
      }
    }
    objectives.insert(row.at("objective"));
  }
  EXPECT_EQ(objectives.size(), 8u);
}

TEST(AlgorithmGoldenTest, AdvantagesAreThePublishedOnes) {
  const Json golden = Golden("advantages");
  std::vector<std::vector<std::optional<double>>> scores;
  for (const Json& group : golden.at("groups")) {
    scores.emplace_back();
    for (const double score : group) scores.back().push_back(score);
  }
  std::vector<ScoredGroup> groups;
  for (size_t g = 0; g < scores.size(); ++g) {
    groups.push_back({scores[g], static_cast<double>(golden.at("greedy")[g])});
  }
  EXPECT_EQ(golden.at("advantages").size(), 6u);
  for (const auto& [name, want] : golden.at("advantages").items()) {
    const auto kind =
        FromName<AdvantageKind>(name, static_cast<int>(AdvantageKind::kGreedyBaseline));
    const std::vector<double> got = BatchAdvantages(kind, groups);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) ExpectClose(got[i], want[i], name);
  }
}

TEST(AlgorithmGoldenTest, CorrectionsAreThePublishedOnes) {
  const Json inputs = Golden("inputs");
  std::set<std::string> kinds;
  for (const Json& row : Golden("corrections")) {
    const std::string kind = row.at("kind");
    const std::string what = kind + " " + std::string(row.at("inputs"));
    CorrectionOptions options = DefaultCorrection(CorrectionOf(kind));
    options.low = row.value("low", options.low);
    options.high = row.value("high", options.high);
    options.k3_limit = row.value("k3_limit", options.k3_limit);
    options.normalize = row.at("normalize");
    CorrectionStatistics statistics;
    std::vector<std::vector<double>> weights;
    for (const Response& response : Responses(inputs.at(row.at("inputs")))) {
      weights.emplace_back(response.old_log_probs.size());
      CorrectionWeights(options, response.old_log_probs, response.behaviour, weights.back());
      statistics.Add(weights.back());
    }
    const double scale = statistics.Scale(options);
    for (size_t i = 0; i < weights.size(); ++i) {
      for (size_t t = 0; t < weights[i].size(); ++t) {
        ExpectClose(weights[i][t] * scale, row.at("weights")[i][t], what);
      }
    }
    const CorrectionMetrics metrics = statistics.Summarize();
    if (row.contains("mean")) ExpectClose(metrics.mean, row["mean"], what);
    if (row.contains("effective_sample_size")) {
      ExpectClose(metrics.effective_sample_size, row["effective_sample_size"], what);
    }
    if (row.contains("masked_share")) ExpectClose(metrics.masked_share, row["masked_share"], what);
    kinds.insert(kind);
  }
  EXPECT_EQ(kinds.size(), 8u);  // all but none and veto
}

TEST(AlgorithmGoldenTest, KlEstimatesAreThePublishedOnes) {
  const std::vector<Response> responses = Responses(Golden("inputs").at("moderate"));
  for (const Json& row : Golden("kl")) {
    const std::string name = row.at("estimator");
    const auto estimator = FromName<KlEstimator>(name, static_cast<int>(KlEstimator::kK3));
    for (size_t i = 0; i < responses.size(); ++i) {
      for (size_t t = 0; t < responses[i].log_probs.size(); ++t) {
        const KlEstimate estimate =
            EstimateKl(estimator, responses[i].log_probs[t], responses[i].reference[t]);
        ExpectClose(estimate.value, row.at("values")[i][t], name);
        ExpectClose(estimate.derivative, row.at("gradient")[i][t], name);
      }
    }
  }
}

TEST(AlgorithmGoldenTest, OverlongPenaltiesAreThePublishedOnes) {
  const Json golden = Golden("overlong");
  const OverlongOptions options{
      .enabled = true, .max_length = golden.at("max_length"), .cache = golden.at("cache")};
  for (size_t i = 0; i < golden.at("lengths").size(); ++i) {
    ExpectClose(OverlongPenalty(options, golden["lengths"][i]), golden.at("penalties")[i],
                golden["lengths"][i].dump());
  }
}

}  // namespace
}  // namespace halfstep
