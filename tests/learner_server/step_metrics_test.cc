// SPDX-License-Identifier: Apache-2.0
// What a step's figures become in metrics.jsonl.
#include "learner_server/training/step_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

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

}  // namespace
}  // namespace halfstep
