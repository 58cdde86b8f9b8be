// SPDX-License-Identifier: Apache-2.0
// What a step's figures become in metrics.jsonl and in the scrape.
#include "learner_server/training/step_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "common/metrics/learner_metrics.h"

namespace halfstep {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

StepRecord RecordWithUpdate(double loss, double gradient_norm) {
  StepRecord record;
  record.step = 3;
  OptimizerStepReport update;
  update.applied = true;
  update.tokens = 10;
  update.loss.loss = loss;
  update.gradient_norm = gradient_norm;
  record.updates.push_back(update);
  return record;
}

TEST(MetricsLineTest, CountsHaveNoFraction) {
  StepRecord record = RecordWithUpdate(0.5, 2);
  record.loss_scale = 0x1p40f;
  const std::string line = MetricsLine(record);
  EXPECT_THAT(line, testing::HasSubstr("\"step\":3,"));
  EXPECT_THAT(line, testing::HasSubstr("\"loss\":0.5,"));
  EXPECT_THAT(line, testing::HasSubstr("\"grad_norm\":2,"));
  EXPECT_THAT(line, testing::HasSubstr("\"loss_scale\":1099511627776,"));
}

TEST(MetricsLineTest, WhatIsNotFiniteIsNullAndWhatIsHugeStaysANumber) {
  for (const double loss : {std::nan(""), kInfinity, -kInfinity}) {
    const nlohmann::json line = nlohmann::json::parse(MetricsLine(RecordWithUpdate(loss, 1e300)));
    EXPECT_TRUE(line["loss"].is_null()) << loss;
    EXPECT_EQ(line["grad_norm"], 1e300);
    EXPECT_EQ(line["step"], 3);
  }
  EXPECT_EQ(nlohmann::json::parse(MetricsLine(RecordWithUpdate(-0x1p63, 0x1p63)))["loss"], -0x1p63);
}

TEST(MetricsLineTest, PhantomClipsAreThoseOfTheFirstUpdateOfAComparedBatch) {
  StepRecord record = RecordWithUpdate(0, 1);
  record.updates[0].loss.tokens = 10;
  record.updates[0].loss.clipped_low = 1;
  record.updates[0].loss.clipped_high = 2;
  record.updates.push_back(record.updates[0]);
  record.updates[1].loss.clipped_high = 9;
  EXPECT_EQ(MetricsOf(record).count("phantom_clip_fraction"), 0u);
  record.mismatch.tokens_compared = 10;
  EXPECT_DOUBLE_EQ(MetricsOf(record).at("phantom_clip_fraction"), 0.3);
}

TEST(MetricsLineTest, TheLossIsThatOfAllItsParts) {
  StepRecord record = RecordWithUpdate(0.5, 1);
  EXPECT_EQ(MetricsOf(record).count("reference_kl"), 0u);
  record.updates[0].loss.tokens = 10;
  record.updates[0].loss.clipped_dual = 4;
  record.updates[0].kl = {.loss = 0.25, .estimate_sum = 3, .tokens = 10};
  record.updates[0].entropy_loss = -0.125;
  const auto metrics = MetricsOf(record);
  EXPECT_DOUBLE_EQ(metrics.at("loss"), 0.625);
  EXPECT_DOUBLE_EQ(metrics.at("reference_kl"), 0.3);
  EXPECT_DOUBLE_EQ(metrics.at("dual_clip_fraction"), 0.4);
}

TEST(ExportTest, AStepThatComparesNothingLeavesTheMismatchGauges) {
  Registry registry;
  LearnerMetrics metrics(registry);
  StepRecord record = RecordWithUpdate(0, 1);
  record.mismatch.tokens_compared = 10;
  record.mismatch.k3 = 0.25;
  record.mismatch.abs_max = 0.5;
  Export(record, &metrics);
  record.mismatch = {};
  Export(record, &metrics);
  EXPECT_EQ(metrics.mismatch_kl.Value(), 0.25);
  EXPECT_EQ(metrics.mismatch_max.Value(), 0.5);
  EXPECT_EQ(metrics.mismatch_tokens.Value(), 10);
}

// Whatever metrics.jsonl says of the time of a step, the scrape does too.
TEST(ExportTest, EveryTimeOfAStepIsAPhase) {
  StepRecord record = RecordWithUpdate(0, 1);
  record.wait_time = absl::Seconds(1);
  record.score_time = absl::Seconds(2);
  record.reference_time = absl::Seconds(4);
  record.rescore_time = absl::Seconds(8);
  record.updates[0].forward_backward_time = absl::Seconds(16);
  record.updates[0].optimizer_time = absl::Seconds(32);
  record.updates[0].kl.tokens = 10;  // a reference policy was asked
  record.publish_time = absl::Seconds(64);
  Registry registry;
  LearnerMetrics metrics(registry);
  Export(record, &metrics);
  const std::string scrape = registry.Scrape();
  int phases = 0;
  for (const auto& [name, seconds] : MetricsOf(record)) {
    if (!name.starts_with("time_") || name == "time_total") continue;
    ++phases;
    EXPECT_THAT(scrape, testing::HasSubstr(absl::StrFormat(
                            "halfstep_learner_step_duration_seconds_sum{phase=\"%s\"} %g\n",
                            name.substr(5), seconds)));
  }
  EXPECT_EQ(phases, 7);
}

TEST(ExportTest, ARunStartsWithItsOwnVersionLagAndBoundAndNothingCompared) {
  Registry registry;
  LearnerMetrics metrics(registry);
  metrics.policy_version.Set(150);
  metrics.mismatch_max.Set(0.5);
  Export(RunStart{.step = 4, .published_version = 3, .lag = 2, .profile = Profile::kFast},
         &metrics);
  EXPECT_EQ(metrics.step.Value(), 4);
  EXPECT_EQ(metrics.policy_version.Value(), 3);
  EXPECT_EQ(metrics.scheduled_lag.Value(), 2);
  EXPECT_EQ(metrics.mismatch_bound.Value(), MismatchBound(Profile::kFast));
  EXPECT_TRUE(std::isnan(metrics.mismatch_max.Value()));
  EXPECT_TRUE(std::isnan(metrics.mismatch_kl.Value()));
  EXPECT_GT(metrics.last_step_timestamp.Value(), 1e9);
  // In the spelling that Prometheus reads.
  EXPECT_THAT(registry.Scrape(),
              testing::HasSubstr("halfstep_learner_mismatch_logprob_abs_max Nan\n"));
}

}  // namespace
}  // namespace halfstep
