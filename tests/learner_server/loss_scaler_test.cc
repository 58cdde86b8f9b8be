// SPDX-License-Identifier: Apache-2.0
// The rules of the loss scaler. Traces of the published scalers are in loss_scaler_golden_test.cc.
#include "learner_server/training/loss_scaler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "common/base/error_reason.h"

namespace halfstep {
namespace {

LossScaler Fast(int64_t interval = 2, int64_t hysteresis = 1) {
  return LossScaler(
      {.initial = 8, .interval = interval, .hysteresis = hysteresis, .minimum = 1, .maximum = 32});
}

TEST(LossScalerTest, HalvesScaleOnNonFiniteGradient) {
  LossScaler scaler = Fast();
  EXPECT_TRUE(scaler.Update(true).ok());
  EXPECT_EQ(scaler.scale(), 4);
  EXPECT_EQ(scaler.inverse_scale(), 0.25f);
  EXPECT_EQ(scaler.state().skips_in_row, 1);
}

TEST(LossScalerTest, GrowsAfterAnIntervalOfGoodStepsUpToTheMaximum) {
  LossScaler scaler = Fast();
  std::vector<float> scales;
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(scaler.Update(false).ok());
    scales.push_back(scaler.scale());
  }
  EXPECT_THAT(scales, testing::ElementsAre(8, 16, 16, 32, 32, 32, 32, 32));
}

TEST(LossScalerTest, OverflowRestartsTheInterval) {
  LossScaler scaler = Fast(3);
  for (const bool found_inf : {false, false, true, false, false}) {
    ASSERT_TRUE(scaler.Update(found_inf).ok());
  }
  EXPECT_EQ(scaler.scale(), 4);
  ASSERT_TRUE(scaler.Update(false).ok());
  EXPECT_EQ(scaler.scale(), 8);
}

TEST(LossScalerTest, HysteresisToleratesOverflowsUntilGrowthRefillsIt) {
  LossScaler scaler = Fast(2, 2);
  ASSERT_TRUE(scaler.Update(true).ok());
  EXPECT_EQ(scaler.scale(), 8);
  ASSERT_TRUE(scaler.Update(false).ok());
  ASSERT_TRUE(scaler.Update(true).ok());  // not consecutive, still the second
  EXPECT_EQ(scaler.scale(), 4);
  ASSERT_TRUE(scaler.Update(true).ok());
  EXPECT_EQ(scaler.scale(), 2);
  ASSERT_TRUE(scaler.Update(false).ok());
  ASSERT_TRUE(scaler.Update(false).ok());
  EXPECT_EQ(scaler.scale(), 4);
  ASSERT_TRUE(scaler.Update(true).ok());
  EXPECT_EQ(scaler.scale(), 4);
}

TEST(LossScalerTest, FailsAtTheFloor) {
  LossScaler scaler = Fast();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(scaler.Update(true).ok());
  EXPECT_EQ(scaler.scale(), 1);
  const absl::Status failure = scaler.Update(true);
  EXPECT_EQ(failure.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(failure), "LOSS_SCALE_FLOOR");
  EXPECT_THAT(std::string(failure.message()), testing::HasSubstr("smallest loss scale, 1"));
}

TEST(LossScalerTest, SearchForAWorkingScaleIsNotDivergence) {
  LossScaler scaler({.initial = 0x1p40f, .minimum = 1, .maximum = 0});
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(scaler.Update(true).ok()) << i;
  ASSERT_TRUE(scaler.Update(false).ok());
  EXPECT_EQ(scaler.state().window, "a");
}

TEST(LossScalerTest, TwentySkipsInARowAreDivergence) {
  LossScaler scaler({.initial = 0x1p40f, .minimum = 1, .maximum = 0});
  ASSERT_TRUE(scaler.Update(false).ok());
  for (int i = 0; i < 19; ++i) ASSERT_TRUE(scaler.Update(true).ok()) << i;
  const absl::Status failure = scaler.Update(true);
  EXPECT_EQ(ReasonOf(failure), "DIVERGED");
  EXPECT_THAT(std::string(failure.message()), testing::HasSubstr("20 optimizer steps"));
}

TEST(LossScalerTest, MoreThanATenthOfAFullWindowIsDivergence) {
  LossScaler scaler({.initial = 0x1p60f, .minimum = 0, .maximum = 0});
  // One skip in eight: 25 of a window of 200, allowed only while the window is not full.
  int updates = 0;
  absl::Status status;
  while (status.ok() && updates < 1000) status = scaler.Update(updates++ % 8 == 7);
  EXPECT_EQ(ReasonOf(status), "DIVERGED");
  EXPECT_EQ(updates, 200);
}

TEST(LossScalerTest, ATenthOfTheWindowIsTolerated) {
  LossScaler scaler({.initial = 0x1p100f, .minimum = 0, .maximum = 0});
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(scaler.Update(i % 10 == 9).ok()) << i;
}

TEST(LossScalerTest, StaticScaleStaysAndEndsAfterTwentySkips) {
  LossScaleOptions options = *LossScalePreset("static");
  options.initial = 1024;
  LossScaler scaler(options);
  for (int i = 0; i < 3000; ++i) ASSERT_TRUE(scaler.Update(false).ok());
  EXPECT_EQ(scaler.scale(), 1024);
  LossScaler never_worked(options);
  absl::Status status;
  int updates = 0;
  for (; status.ok(); ++updates) status = never_worked.Update(true);
  EXPECT_EQ(ReasonOf(status), "DIVERGED");
  EXPECT_EQ(updates, 20);
  EXPECT_EQ(never_worked.scale(), 1024);
}

TEST(LossScalerTest, NeverReachesInfinityOrZero) {
  LossScaler up({.initial = 0x1p126f, .interval = 1, .minimum = 0, .maximum = 0});
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(up.Update(false).ok());
  EXPECT_EQ(up.scale(), 0x1p127f);
  LossScaler down({.initial = 0x1p-124f, .minimum = 0, .maximum = 0});
  absl::Status status;
  while (status.ok()) status = down.Update(true);
  EXPECT_EQ(ReasonOf(status), "LOSS_SCALE_FLOOR");
  EXPECT_EQ(down.scale(), std::numeric_limits<float>::min());
}

TEST(LossScalerTest, GoesOnFromASavedState) {
  LossScaler whole = Fast(3, 2);
  LossScaler first = Fast(3, 2);
  const bool outcomes[] = {false, true, false, false, false, true, true, false};
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(whole.Update(outcomes[i]).ok());
    ASSERT_TRUE(first.Update(outcomes[i]).ok());
  }
  LossScaler second({.initial = 8, .interval = 3, .hysteresis = 2, .minimum = 1, .maximum = 32},
                    first.state());
  for (int i = 4; i < 8; ++i) {
    ASSERT_TRUE(whole.Update(outcomes[i]).ok());
    ASSERT_TRUE(second.Update(outcomes[i]).ok());
  }
  EXPECT_EQ(whole.state(), second.state());
}

TEST(LossScaleOptionsTest, PresetsAreAsDocumented) {
  const LossScaleOptions defaults = *LossScalePreset("default");
  EXPECT_EQ(defaults.initial, 0x1p16f);
  EXPECT_EQ(defaults.interval, 400);
  EXPECT_EQ(defaults.maximum, 0x1p24f);
  EXPECT_EQ(LossScalePreset("torch")->interval, 2000);
  EXPECT_EQ(LossScalePreset("deepspeed")->hysteresis, 2);
  EXPECT_EQ(LossScalePreset("megatron")->initial, 0x1p32f);
  EXPECT_FALSE(LossScalePreset("static")->dynamic);
  EXPECT_EQ(LossScalePreset("apex").status().code(), absl::StatusCode::kInvalidArgument);
  for (const char* name : {"default", "torch", "deepspeed", "megatron", "static"}) {
    EXPECT_TRUE(CheckLossScaleOptions(*LossScalePreset(name)).ok()) << name;
  }
}

TEST(LossScaleOptionsTest, RefusesWhatIsNotAPowerOfTwo) {
  EXPECT_THAT(std::string(CheckLossScaleOptions({.initial = 1000}).message()),
              testing::HasSubstr("loss_scale.initial is 1000"));
  EXPECT_FALSE(CheckLossScaleOptions({.growth = 1.5f}).ok());
  EXPECT_FALSE(CheckLossScaleOptions({.backoff = 0.3f}).ok());
  EXPECT_FALSE(CheckLossScaleOptions({.minimum = 3}).ok());
  EXPECT_FALSE(CheckLossScaleOptions({.maximum = 100000}).ok());
}

TEST(LossScaleOptionsTest, RefusesWhatCannotWork) {
  EXPECT_FALSE(CheckLossScaleOptions({.growth = 0.5f}).ok());
  EXPECT_FALSE(CheckLossScaleOptions({.backoff = 1}).ok());
  EXPECT_FALSE(CheckLossScaleOptions({.interval = 0}).ok());
  EXPECT_FALSE(CheckLossScaleOptions({.hysteresis = 0}).ok());
  EXPECT_FALSE(CheckLossScaleOptions({.initial = 0.5f}).ok());
  EXPECT_FALSE(CheckLossScaleOptions({.initial = 0x1p25f}).ok());
}

}  // namespace
}  // namespace halfstep
