// SPDX-License-Identifier: Apache-2.0
#include "common/config/validate_spec.h"

#include <functional>

#include "common/config/load_spec.h"
#include "common/config/resolve_spec.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "halfstep/v1/training_job.pb.h"
#include "tests/common/config/spec_for_tests.h"

namespace halfstep {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Change = std::function<void(v1::TrainingJobSpec&)>;

v1::TrainingJobSpec Valid(const char* text = kValidJob) {
  v1::TrainingJobSpec spec;
  const absl::Status status = LoadSpec(text, "job.yaml", &spec);
  EXPECT_TRUE(status.ok()) << status;
  return spec;
}

v1::TrainingJobSpec Changed(const Change& change, const char* text) {
  v1::TrainingJobSpec spec = Valid(text);
  change(spec);
  ResolveSpec("j1", &spec);
  return spec;
}

std::vector<FieldViolation> Violations(const Change& change, const char* text = kValidJob) {
  return ValidateSpec(Changed(change, text));
}

// By one violation, which is also what the status that a caller gets says.
void ExpectRefused(const Change& change, const std::string& field, const std::string& description,
                   const char* text = kValidJob) {
  EXPECT_THAT(Violations(change, text),
              ElementsAre(AllOf(Field(&FieldViolation::field, field),
                                Field(&FieldViolation::description, HasSubstr(description)))))
      << field;
  const absl::Status status = CheckSpec(Changed(change, text));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
  EXPECT_EQ(ReasonOf(status), "INVALID_SPEC") << field;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(field), HasSubstr(description)));
}

TEST(ValidateSpecTest, AcceptsSmallJobs) {
  EXPECT_THAT(Violations([](auto&) {}), IsEmpty());
  EXPECT_THAT(Violations([](auto&) {}, kValidSftJob), IsEmpty());
}

TEST(ValidateSpecTest, MissingKeysAreNamedAllAtOnce) {
  v1::TrainingJobSpec spec;
  ResolveSpec("j1", &spec);
  std::vector<std::string> fields;
  for (const FieldViolation& violation : ValidateSpec(spec)) {
    EXPECT_THAT(violation.description, HasSubstr("is required"));
    fields.push_back(violation.field);
  }
  EXPECT_THAT(fields, ElementsAre("model", "steps", "data.train", "sampling.max_new_tokens",
                                  "batch.prompts", "batch.samples", "optimizer.learning_rate"));
}

TEST(ValidateSpecTest, UpdatesMustDividePrompts) {
  ExpectRefused([](auto& s) { s.mutable_batch()->set_updates(3); }, "batch.updates",
                "is 3, which does not divide batch.prompts 8");
}

TEST(ValidateSpecTest, BitwiseNeedsEqualPrecisions) {
  const auto mixed = [](auto& s) { s.mutable_precision()->set_rollout(v1::PRECISION_BF16); };
  ExpectRefused(mixed, "precision.learner", "needs them equal");
  EXPECT_THAT(Violations([&](auto& s) {
                mixed(s);
                s.set_profile(v1::PROFILE_FAST);
              }),
              IsEmpty());
}

TEST(ValidateSpecTest, PartsOfAModelAreFp32OrFollowTheirSide) {
  ExpectRefused([](auto& s) { s.mutable_precision()->set_head(v1::PRECISION_BF16); },
                "precision.head", "is bf16; accepted is fp32");
  ExpectRefused([](auto& s) { s.mutable_precision()->set_residual(v1::PRECISION_FP16); },
                "precision.residual", "is fp16; accepted is fp32");
  EXPECT_THAT(Violations([](auto& s) {
                s.mutable_precision()->set_head(v1::PRECISION_FP32);
                s.mutable_precision()->set_residual(v1::PRECISION_FP32);
              }),
              IsEmpty());
}

TEST(ValidateSpecTest, NumbersOutOfRangeSayTheRange) {
  ExpectRefused([](auto& s) { s.set_steps(0); }, "steps", "is 0; accepted are 1 to");
  ExpectRefused([](auto& s) { s.mutable_batch()->set_lag(-1); }, "batch.lag",
                "is -1; accepted are 0");
  ExpectRefused([](auto& s) { s.mutable_batch()->set_max_lag(0); }, "batch.max_lag",
                "is 0; accepted are 1");
  ExpectRefused([](auto& s) { s.mutable_batch()->set_prompts(0); }, "batch.prompts", "accepted");
  ExpectRefused([](auto& s) { s.mutable_batch()->set_samples(0); }, "batch.samples", "accepted");
  ExpectRefused([](auto& s) { s.mutable_batch()->set_updates(0); }, "batch.updates", "accepted");
  ExpectRefused([](auto& s) { s.mutable_batch()->set_micro_batch_tokens(0); },
                "batch.micro_batch_tokens", "accepted");
  ExpectRefused([](auto& s) { s.mutable_sampling()->set_max_new_tokens(0); },
                "sampling.max_new_tokens", "accepted");
  ExpectRefused([](auto& s) { s.mutable_evaluation()->set_samples(0); }, "evaluation.samples",
                "accepted");
  ExpectRefused([](auto& s) { s.mutable_evaluation()->set_every_steps(-1); },
                "evaluation.every_steps", "accepted");
  ExpectRefused([](auto& s) { s.mutable_checkpoint()->set_every_steps(-1); },
                "checkpoint.every_steps", "accepted");
  ExpectRefused([](auto& s) { s.mutable_optimizer()->set_warmup_steps(11); },
                "optimizer.warmup_steps", "accepted are 0 to 10");
}

TEST(ValidateSpecTest, TemperatureMustBeAboveZero) {
  for (const double value : {0.0, -1.0, static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
    ExpectRefused([value](auto& s) { s.mutable_sampling()->set_temperature(value); },
                  "sampling.temperature", "must be above 0");
  }
}

TEST(ValidateSpecTest, StopStringsMustNotBeEmpty) {
  ExpectRefused([](auto& s) { s.mutable_sampling()->add_stop(std::string()); }, "sampling.stop",
                "empty text");
}

TEST(ValidateSpecTest, OptimizerNumbersMustBeUsable) {
  const auto optimizer = [](auto change, const std::string& field, const std::string& description) {
    ExpectRefused([change](auto& s) { change(*s.mutable_optimizer()); }, field, description);
  };
  optimizer([](auto& o) { o.set_learning_rate(0); }, "optimizer.learning_rate", "above 0");
  optimizer([](auto& o) { o.set_learning_rate(NAN); }, "optimizer.learning_rate", "above 0");
  optimizer([](auto& o) { o.set_weight_decay(-0.1); }, "optimizer.weight_decay", "0 or more");
  optimizer([](auto& o) { o.set_clip_norm(-1); }, "optimizer.clip_norm", "0 for no clipping");
  optimizer([](auto& o) { o.add_adam(0.9); }, "optimizer.adam", "[beta1, beta2, epsilon]");
  optimizer(
      [](auto& o) {
        for (const double value : {1.0, 0.95, 1e-15}) o.add_adam(value);
      },
      "optimizer.adam", "[0, 1)");
}

// What rounds to 0, to 1 or to infinity is refused as these are.
TEST(ValidateSpecTest, NumbersAreJudgedAsTheFloatsThatTrainingComputesWith) {
  const auto adam = [](double beta1, double beta2, double epsilon) {
    ExpectRefused(
        [=](auto& s) {
          for (const double value : {beta1, beta2, epsilon}) s.mutable_optimizer()->add_adam(value);
        },
        "optimizer.adam", "rounded to FP32");
  };
  adam(0.9, 0.95, 1e-50);
  adam(0.9, 0.95, 1e39);
  adam(0.9, 0.9999999999, 1e-15);
  adam(0.9999999999, 0.95, 1e-15);
  for (const double value : {1e-50, 1e39}) {
    ExpectRefused([=](auto& s) { s.mutable_optimizer()->set_learning_rate(value); },
                  "optimizer.learning_rate", "above 0");
    ExpectRefused([=](auto& s) { s.mutable_optimizer()->set_weight_decay(value); },
                  "optimizer.weight_decay", "0 or more");
    ExpectRefused([=](auto& s) { s.mutable_optimizer()->set_clip_norm(value); },
                  "optimizer.clip_norm", "0 for no clipping");
    ExpectRefused([=](auto& s) { s.mutable_sampling()->set_temperature(value); },
                  "sampling.temperature", "above 0");
  }
}

TEST(ValidateSpecTest, ClipHasTwoNumbers) {
  const auto clip = [](auto& s) { s.mutable_algorithm()->add_clip(0.2); };
  ExpectRefused(clip, "algorithm.clip", "has 1 numbers; it is [low, high]");
  EXPECT_THAT(Violations([&](auto& s) {
                clip(s);
                clip(s);
              }),
              IsEmpty());
}

TEST(ValidateSpecTest, LossScaleMustBeExact) {
  const auto scale = [](auto change, const std::string& field, const std::string& description) {
    ExpectRefused([change](auto& s) { change(*s.mutable_loss_scale()); }, field, description);
  };
  scale([](auto& l) { l.set_initial(1000); }, "loss_scale.initial", "power of two");
  scale([](auto& l) { l.set_initial(-2); }, "loss_scale.initial", "power of two");
  scale([](auto& l) { l.set_initial(0x1p200); }, "loss_scale.initial", "power of two");
  const auto factors = [&](double growth, double backoff) {
    scale(
        [=](auto& l) {
          l.add_factors(growth);
          l.add_factors(backoff);
        },
        "loss_scale.factors", "[growth, backoff]");
  };
  factors(3, 0.5);
  factors(2, 0.6);
  factors(2, 1);
  factors(0.5, 0.5);
  scale([](auto& l) { l.add_factors(2); }, "loss_scale.factors", "[growth, backoff]");
  const auto patience = [&](std::vector<int64_t> values) {
    scale([=](auto& l) { l.mutable_patience()->Add(values.begin(), values.end()); },
          "loss_scale.patience", "[good steps before growth, overflows before a cut]");
  };
  patience({0, 1});
  patience({400, 0});
  patience({400});
  scale(
      [](auto& l) {
        l.add_range(4);
        l.add_range(2);
      },
      "loss_scale.range", "min at most max");
  scale([](auto& l) { l.add_range(4); }, "loss_scale.range", "[min, max]");
  scale(
      [](auto& l) {
        l.set_initial(1);
        l.add_range(2);
        l.add_range(0);
      },
      "loss_scale.initial", "outside loss_scale.range");
}

TEST(ValidateSpecTest, StaticScaleIsGivenAndStays) {
  const auto make_static = [](v1::TrainingJobSpec& s) {
    s.mutable_loss_scale()->set_preset(v1::LOSS_SCALE_PRESET_STATIC);
  };
  ExpectRefused(make_static, "loss_scale.initial", "is required");
  EXPECT_THAT(Violations([&](auto& s) {
                make_static(s);
                s.mutable_loss_scale()->set_initial(1024);
              }),
              IsEmpty());
  ExpectRefused(
      [&](auto& s) {
        make_static(s);
        s.mutable_loss_scale()->set_initial(1024);
        s.mutable_loss_scale()->add_patience(5);
        s.mutable_loss_scale()->add_patience(1);
      },
      "loss_scale.patience", "no meaning for preset static");
}

TEST(ValidateSpecTest, RewardPatternBelongsToSomeRewards) {
  ExpectRefused([](auto& s) { s.mutable_reward()->set_type(v1::REWARD_TYPE_REGEX); },
                "reward.pattern", "required by reward.type regex");
  ExpectRefused(
      [](auto& s) {
        s.mutable_reward()->set_type(v1::REWARD_TYPE_NUMERIC);
        s.mutable_reward()->set_pattern("x");
      },
      "reward.pattern", "not used by reward.type numeric");
}

TEST(ValidateSpecTest, ColumnsAreThoseOfTheObjective) {
  ExpectRefused([](auto& s) { (*s.mutable_data()->mutable_columns())["promt"] = "q"; },
                "data.columns.promt", "did you mean 'prompt'?");
  ExpectRefused([](auto& s) { (*s.mutable_data()->mutable_columns())["response"] = "r"; },
                "data.columns.response", "there are prompt and answer");
  ExpectRefused([](auto& s) { (*s.mutable_data()->mutable_columns())["answer"] = std::string(); },
                "data.columns.answer", "is empty");
}

TEST(ValidateSpecTest, EvaluationNeedsPrompts) {
  ExpectRefused(
      [](auto& s) {
        s.mutable_data()->clear_eval();
        s.mutable_evaluation()->set_every_steps(5);
      },
      "evaluation.every_steps", "without data.eval");
}

TEST(ValidateSpecTest, GenerationIsScheduledOrFree) {
  EXPECT_THAT(Violations([](auto& s) { s.mutable_batch()->set_max_lag(2); }), IsEmpty());
  ExpectRefused(
      [](auto& s) {
        s.mutable_batch()->set_max_lag(2);
        s.mutable_batch()->set_lag(1);
      },
      "batch.max_lag", "either scheduled or free");
}

TEST(ValidateSpecTest, SupervisedJobsHaveNoKeysOfRl) {
  const auto refused = [](const Change& change, const std::string& field) {
    ExpectRefused(change, field, "no meaning for objective sft", kValidSftJob);
  };
  refused([](auto& s) { s.mutable_batch()->set_lag(1); }, "batch.lag");
  refused([](auto& s) { s.mutable_batch()->set_max_lag(1); }, "batch.max_lag");
  refused([](auto& s) { s.mutable_batch()->set_updates(2); }, "batch.updates");
  refused([](auto& s) { s.mutable_batch()->set_samples(8); }, "batch.samples");
  refused([](auto& s) { s.mutable_reward(); }, "reward");
  refused([](auto& s) { s.mutable_algorithm(); }, "algorithm");
  refused([](auto& s) { s.mutable_sampling(); }, "sampling");
  refused([](auto& s) { s.mutable_evaluation(); }, "evaluation");
  refused([](auto& s) { s.mutable_data()->set_eval("e.jsonl"); }, "data.eval");
  refused([](auto& s) { s.set_save_samples(true); }, "save_samples");
}

TEST(ValidateSpecTest, WhatOnlyTheWireCanSayIsCheckedToo) {
  ExpectRefused([](auto& s) { s.set_profile(static_cast<v1::Profile>(77)); }, "profile",
                "is 77, which this build does not know; accepted are fast, bitwise");
  ExpectRefused([](auto& s) { s.set_model(std::string("a\0b", 3)); }, "model", "zero byte");
  ExpectRefused([](auto& s) { s.set_model(std::string(5000, 'a')); }, "model", "longer than 4096");
}

TEST(ResolveSpecTest, FillsTheDefaultsOfTheSchema) {
  v1::TrainingJobSpec spec = Valid();
  ResolveSpec("j1", &spec);
  EXPECT_EQ(spec.objective(), v1::OBJECTIVE_RL);
  EXPECT_EQ(spec.output_dir(), "runs/j1");
  EXPECT_EQ(spec.seed(), 1u);
  EXPECT_EQ(spec.profile(), v1::PROFILE_BITWISE);
  EXPECT_EQ(spec.precision().rollout(), v1::PRECISION_FP16);
  EXPECT_EQ(spec.precision().learner(), v1::PRECISION_FP16);
  EXPECT_EQ(spec.data().columns().at("prompt"), "prompt");
  EXPECT_EQ(spec.data().columns().at("answer"), "answer");
  EXPECT_EQ(spec.data().overlong_prompts(), v1::OVERLONG_PROMPTS_REFUSE);
  EXPECT_EQ(spec.reward().type(), v1::REWARD_TYPE_EXACT_MATCH);
  EXPECT_FALSE(spec.reward().permute());
  EXPECT_EQ(spec.algorithm().preset(), v1::ALGORITHM_PRESET_DR_GRPO);
  EXPECT_EQ(spec.sampling().temperature(), 1);
  EXPECT_EQ(spec.batch().updates(), 1);
  EXPECT_EQ(spec.batch().micro_batch_tokens(), 16384);
  EXPECT_EQ(spec.batch().lag(), 0);
  EXPECT_EQ(spec.optimizer().schedule(), v1::SCHEDULE_CONSTANT);
  EXPECT_EQ(spec.optimizer().warmup_steps(), 0);
  EXPECT_EQ(spec.optimizer().weight_decay(), 0);
  EXPECT_EQ(spec.optimizer().clip_norm(), 1);
  EXPECT_THAT(spec.optimizer().adam(), ElementsAre(0.9, 0.95, 1e-15));
  EXPECT_EQ(spec.loss_scale().preset(), v1::LOSS_SCALE_PRESET_DEFAULT);
  EXPECT_FALSE(spec.loss_scale().has_initial());
  EXPECT_EQ(spec.evaluation().every_steps(), 0);
  EXPECT_EQ(spec.evaluation().samples(), 4);
  EXPECT_EQ(spec.checkpoint().every_steps(), 50);
}

TEST(ResolveSpecTest, KeepsWhatWasGivenAlsoZeros) {
  v1::TrainingJobSpec spec = Valid();
  spec.set_seed(0);
  spec.set_output_dir("here");
  spec.mutable_optimizer()->set_clip_norm(0);
  spec.mutable_checkpoint()->set_every_steps(0);
  (*spec.mutable_data()->mutable_columns())["prompt"] = "question";
  ResolveSpec("j1", &spec);
  EXPECT_EQ(spec.seed(), 0u);
  EXPECT_EQ(spec.output_dir(), "here");
  EXPECT_EQ(spec.optimizer().clip_norm(), 0);
  EXPECT_EQ(spec.checkpoint().every_steps(), 0);
  EXPECT_EQ(spec.data().columns().at("prompt"), "question");
}

TEST(ResolveSpecTest, ResolvingTwiceChangesNothing) {
  for (const char* text : {kValidJob, kValidSftJob}) {
    v1::TrainingJobSpec once = Valid(text);
    ResolveSpec("j1", &once);
    v1::TrainingJobSpec twice = once;
    ResolveSpec("j2", &twice);
    EXPECT_EQ(once.DebugString(), twice.DebugString());
  }
}

TEST(ResolveSpecTest, SupervisedJobGetsNoKeysOfRl) {
  v1::TrainingJobSpec spec = Valid(kValidSftJob);
  ResolveSpec("j1", &spec);
  EXPECT_FALSE(spec.has_sampling());
  EXPECT_FALSE(spec.has_reward());
  EXPECT_EQ(spec.batch().samples(), 1);
  EXPECT_EQ(spec.data().columns().at("response"), "response");
}

TEST(ValidateSpecTest, HealthNamesAlarmsOfTheObjective) {
  const auto set = [](const char* alarm, int action) {
    return [=](auto& s) { (*s.mutable_health())[alarm] = static_cast<v1::HealthAction>(action); };
  };
  EXPECT_THAT(Violations(set("entropy_collapse", v1::HEALTH_ACTION_FAIL)), IsEmpty());
  EXPECT_THAT(Violations(set("gradient_norm_jump", v1::HEALTH_ACTION_PAUSE), kValidSftJob),
              IsEmpty());
  ExpectRefused(set("entropy_colapse", v1::HEALTH_ACTION_WARN), "health.entropy_colapse",
                "did you mean 'entropy_collapse'?");
  ExpectRefused(set("constant_reward", v1::HEALTH_ACTION_WARN), "health.constant_reward",
                "no alarm of an sft job; accepted is gradient_norm_jump", kValidSftJob);
  ExpectRefused(set("constant_reward", 9), "health.constant_reward",
                "is 9, which this build does not know; accepted are warn, pause, fail");
}

}  // namespace
}  // namespace halfstep
