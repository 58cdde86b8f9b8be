// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/lr_schedule.h"

#include <gtest/gtest.h>

namespace halfstep {
namespace {

TEST(LrScheduleTest, WarmsUpToThePeak) {
  const LrSchedule schedule{LrScheduleKind::kConstant, 0.5, 4, 100};
  EXPECT_DOUBLE_EQ(schedule.At(0), 0.125);
  EXPECT_DOUBLE_EQ(schedule.At(3), 0.5);
  EXPECT_DOUBLE_EQ(schedule.At(4), 0.5);
  EXPECT_DOUBLE_EQ(schedule.At(99), 0.5);
}

TEST(LrScheduleTest, LinearDecaysToZeroAtTheEnd) {
  const LrSchedule schedule{LrScheduleKind::kLinear, 1.0, 0, 10};
  EXPECT_DOUBLE_EQ(schedule.At(0), 1);
  EXPECT_DOUBLE_EQ(schedule.At(5), 0.5);
  EXPECT_DOUBLE_EQ(schedule.At(9), 0.1);
  EXPECT_DOUBLE_EQ(schedule.At(10), 0);
  EXPECT_DOUBLE_EQ(schedule.At(50), 0);
}

TEST(LrScheduleTest, CosineStartsAfterTheWarmUp) {
  const LrSchedule schedule{LrScheduleKind::kCosine, 2.0, 2, 12};
  EXPECT_DOUBLE_EQ(schedule.At(1), 2);
  EXPECT_DOUBLE_EQ(schedule.At(2), 2);
  EXPECT_NEAR(schedule.At(7), 1, 1e-12);
  EXPECT_NEAR(schedule.At(12), 0, 1e-12);
}

TEST(LrScheduleTest, WarmUpLongerThanTheRunNeverDecays) {
  const LrSchedule schedule{LrScheduleKind::kLinear, 1.0, 20, 10};
  EXPECT_DOUBLE_EQ(schedule.At(9), 0.5);
}

}  // namespace
}  // namespace halfstep
