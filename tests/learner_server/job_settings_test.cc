// SPDX-License-Identifier: Apache-2.0
// From a resolved specification to the trainer's terms.
#include "learner_server/training/job_settings.h"

#include <gtest/gtest.h>

#include "common/base/error_reason.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

TEST(JobSettingsTest, TakesDefaultsFromTheResolvedSpecification) {
  TempDir root;
  const auto settings = MakeJobSettings(TinyWorkplace::RlSpec("run", 10), root.path());
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_FALSE(settings->supervised);
  EXPECT_EQ(settings->train_path, root / "train.jsonl");
  EXPECT_EQ(settings->eval_path, "");
  EXPECT_EQ(settings->target_column, "answer");
  EXPECT_STREQ(settings->train_step.algorithm.name, "dr_grpo");
  EXPECT_EQ(settings->train_step.constant_length, 4);
  EXPECT_EQ(settings->train_step.epsilon, 1e-15f);
  EXPECT_EQ(settings->loss_scale.initial, 65536);
  EXPECT_TRUE(settings->loss_scale.dynamic);
  EXPECT_EQ(settings->train_step.schedule.total_steps, 10);
}

TEST(JobSettingsTest, OverridesOfPresets) {
  TempDir root;
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("run", 10);
  spec.mutable_algorithm()->add_clip(0.1);
  spec.mutable_algorithm()->add_clip(0.4);
  spec.mutable_loss_scale()->set_preset(v1::LOSS_SCALE_PRESET_MEGATRON);
  spec.mutable_loss_scale()->add_patience(50);
  spec.mutable_loss_scale()->add_patience(3);
  spec.mutable_batch()->set_updates(4);
  spec.mutable_optimizer()->set_schedule(v1::SCHEDULE_COSINE);
  const auto settings = MakeJobSettings(spec, root.path());
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(settings->train_step.algorithm.loss.clip_low, 0.1);
  EXPECT_EQ(settings->train_step.algorithm.loss.clip_high, 0.4);
  EXPECT_EQ(settings->loss_scale.initial, 0x1p32f);
  EXPECT_EQ(settings->loss_scale.interval, 50);
  EXPECT_EQ(settings->loss_scale.hysteresis, 3);
  EXPECT_EQ(settings->train_step.schedule.kind, LrScheduleKind::kCosine);
  EXPECT_EQ(settings->train_step.schedule.total_steps, 40);
}

TEST(JobSettingsTest, ChoicesAndParametersReplaceThePresets) {
  TempDir root;
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("run", 10);
  (*spec.mutable_algorithm()->mutable_choices())["advantage"] = "leave_one_out";
  (*spec.mutable_algorithm()->mutable_parameters())["constant_length"] = 100;
  (*spec.mutable_algorithm()->mutable_parameters())["overlong_length"] = 50;
  (*spec.mutable_algorithm()->mutable_parameters())["kl"] = 0.1;
  const auto settings = MakeJobSettings(spec, root.path());
  ASSERT_TRUE(settings.ok()) << settings.status();
  const Algorithm& algorithm = settings->train_step.algorithm;
  EXPECT_EQ(algorithm.advantage, AdvantageKind::kLeaveOneOut);
  EXPECT_EQ(settings->train_step.constant_length, 100);
  EXPECT_EQ(algorithm.regularizers.overlong.cache, 10) << "a fifth";
  EXPECT_EQ(settings->reference_directory, settings->model_directory);
  spec.mutable_algorithm()->set_reference("before");
  EXPECT_EQ(MakeJobSettings(spec, root.path())->reference_directory, root / "before");
  spec.mutable_algorithm()->set_reference("../before");
  EXPECT_EQ(ReasonOf(MakeJobSettings(spec, root.path()).status()), "PATH_OUTSIDE_ROOT");
}

TEST(JobSettingsTest, ViolationsOfChoicesComeAllAtOnceByField) {
  TempDir root;
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("run", 10);
  (*spec.mutable_algorithm()->mutable_choices())["advantage"] = "gae";
  (*spec.mutable_algorithm()->mutable_parameters())["correction_cap"] = 2;
  const absl::Status status = MakeJobSettings(spec, root.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), "INVALID_SPEC");
  const std::vector<FieldViolation> violations = GetFieldViolations(status);
  ASSERT_EQ(violations.size(), 2u);
  EXPECT_EQ(violations[0].field, "algorithm.choices.advantage");
  EXPECT_EQ(violations[1].field, "algorithm.parameters.correction_cap");
  EXPECT_EQ(status.message(), violations[0].description + "\n" + violations[1].description);
}

TEST(JobSettingsTest, ScalingIsOffUnlessFp16OrAskedFor) {
  TempDir root;
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("run", 10);
  spec.mutable_precision()->set_learner(v1::PRECISION_BF16);
  auto settings = MakeJobSettings(spec, root.path());
  ASSERT_TRUE(settings.ok());
  EXPECT_EQ(settings->loss_scale.initial, 1);
  EXPECT_FALSE(settings->loss_scale.dynamic);
  spec.mutable_loss_scale()->set_preset(v1::LOSS_SCALE_PRESET_STATIC);
  spec.mutable_loss_scale()->set_initial(256);
  settings = MakeJobSettings(spec, root.path());
  ASSERT_TRUE(settings.ok());
  EXPECT_EQ(settings->loss_scale.initial, 256);
}

TEST(JobSettingsTest, RefusesScalesThatOverridesMakeImpossible) {
  TempDir root;
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("run", 10);
  spec.mutable_loss_scale()->add_range(1);
  spec.mutable_loss_scale()->add_range(1024);  // below the preset's initial 65536
  EXPECT_EQ(MakeJobSettings(spec, root.path()).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace halfstep
