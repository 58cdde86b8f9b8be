// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/job_settings.h"

#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/config/enum_names.h"
#include "halfstep/v1/training_job.pb.h"
#include "learner_server/training/job_algorithm.h"

namespace halfstep {
namespace {

DType ComputeDType(v1::Precision precision) {
  switch (precision) {
    case v1::PRECISION_BF16:
      return DType::kBFloat16;
    case v1::PRECISION_FP32:
      return DType::kFloat32;
    default:
      return DType::kFloat16;
  }
}

std::string ColumnOf(const v1::DataSpec& data, const std::string& key) {
  const auto found = data.columns().find(key);
  return found == data.columns().end() ? key : found->second;
}

LrSchedule ScheduleOf(const v1::TrainingJobSpec& spec) {
  LrSchedule schedule;
  schedule.peak = spec.optimizer().learning_rate();
  schedule.warmup_steps = spec.optimizer().warmup_steps();
  schedule.total_steps = spec.steps() * spec.batch().updates();
  switch (spec.optimizer().schedule()) {
    case v1::SCHEDULE_LINEAR:
      schedule.kind = LrScheduleKind::kLinear;
      break;
    case v1::SCHEDULE_COSINE:
      schedule.kind = LrScheduleKind::kCosine;
      break;
    default:
      schedule.kind = LrScheduleKind::kConstant;
  }
  return schedule;
}

absl::StatusOr<LossScaleOptions> LossScaleOf(const v1::TrainingJobSpec& spec, DType dtype) {
  const v1::LossScaleSpec& scale = spec.loss_scale();
  const bool is_static = scale.preset() == v1::LOSS_SCALE_PRESET_STATIC;
  // FP32 and BF16 have the range of FP32: nothing overflows that scaling could save.
  const bool off = dtype != DType::kFloat16 && !is_static;
  HALFSTEP_ASSIGN_OR_RETURN(LossScaleOptions options,
                            LossScalePreset(off ? "static" : YamlName(scale.preset())));
  if (off) {
    options.initial = 1;
    return options;
  }
  if (scale.has_initial()) options.initial = static_cast<float>(scale.initial());
  if (scale.factors_size() == 2) {
    options.growth = static_cast<float>(scale.factors(0));
    options.backoff = static_cast<float>(scale.factors(1));
  }
  if (scale.patience_size() == 2) {
    options.interval = scale.patience(0);
    options.hysteresis = scale.patience(1);
  }
  if (scale.range_size() == 2) {
    options.minimum = static_cast<float>(scale.range(0));
    options.maximum = static_cast<float>(scale.range(1));
  }
  HALFSTEP_RETURN_IF_ERROR(CheckLossScaleOptions(options));
  return options;
}

Fp32Parts Fp32PartsOf(const v1::PrecisionSpec& precision) {
  return {.residual = precision.residual() == v1::PRECISION_FP32,
          .head = precision.head() == v1::PRECISION_FP32};
}

absl::StatusOr<TrainStepOptions> TrainStepOptionsOf(const v1::TrainingJobSpec& spec) {
  const v1::OptimizerSpec& optimizer = spec.optimizer();
  TrainStepOptions options;
  options.fp32 = Fp32PartsOf(spec.precision());
  HALFSTEP_ASSIGN_OR_RETURN(options.algorithm, ResolveAlgorithm(spec));
  options.schedule = ScheduleOf(spec);
  options.micro_batch_tokens = spec.batch().micro_batch_tokens();
  options.beta1 = static_cast<float>(optimizer.adam(0));
  options.beta2 = static_cast<float>(optimizer.adam(1));
  options.epsilon = static_cast<float>(optimizer.adam(2));
  options.weight_decay = static_cast<float>(optimizer.weight_decay());
  options.clip_norm = static_cast<float>(optimizer.clip_norm());
  if (spec.objective() != v1::OBJECTIVE_SFT) {
    const int64_t constant = options.algorithm.constant_length;
    options.constant_length = constant > 0 ? constant : spec.sampling().max_new_tokens();
    options.temperature = static_cast<float>(spec.sampling().temperature());
  }
  return options;
}

AlarmAction ActionOf(v1::HealthAction action) {
  switch (action) {
    case v1::HEALTH_ACTION_PAUSE:
      return AlarmAction::kPause;
    case v1::HEALTH_ACTION_FAIL:
      return AlarmAction::kFail;
    default:
      return AlarmAction::kWarn;
  }
}

absl::Status ResolvePaths(const v1::TrainingJobSpec& spec, const std::string& root,
                          JobSettings* settings) {
  settings->root = root;
  HALFSTEP_ASSIGN_OR_RETURN(settings->model_directory, ResolveUnder(root, spec.model()));
  HALFSTEP_ASSIGN_OR_RETURN(settings->output_directory, ResolveUnder(root, spec.output_dir()));
  HALFSTEP_ASSIGN_OR_RETURN(settings->train_path, ResolveUnder(root, spec.data().train()));
  if (!spec.data().eval().empty()) {
    HALFSTEP_ASSIGN_OR_RETURN(settings->eval_path, ResolveUnder(root, spec.data().eval()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<JobSettings> MakeJobSettings(const v1::TrainingJobSpec& spec,
                                            const std::string& root) {
  JobSettings settings;
  settings.supervised = spec.objective() == v1::OBJECTIVE_SFT;
  HALFSTEP_RETURN_IF_ERROR(ResolvePaths(spec, root, &settings));
  settings.prompt_column = ColumnOf(spec.data(), "prompt");
  settings.target_column = ColumnOf(spec.data(), settings.supervised ? "response" : "answer");
  settings.overlong = spec.data().overlong_prompts() == v1::OVERLONG_PROMPTS_SKIP
                          ? OverlongPolicy::kSkip
                          : OverlongPolicy::kRefuse;
  settings.seed = spec.seed();
  settings.steps = spec.steps();
  settings.profile = spec.profile() == v1::PROFILE_FAST ? Profile::kFast : Profile::kBitwise;
  settings.rollout_dtype = ComputeDType(spec.precision().rollout());
  settings.learner_dtype = ComputeDType(spec.precision().learner());
  settings.fp32 = Fp32PartsOf(spec.precision());
  settings.prompts = spec.batch().prompts();
  settings.samples = spec.batch().samples();
  settings.updates = spec.batch().updates();
  settings.lag = spec.batch().lag();
  settings.max_lag = spec.batch().max_lag();
  settings.permute_rewards = spec.reward().permute();
  settings.save_samples = spec.save_samples();
  settings.sampling.temperature = static_cast<float>(spec.sampling().temperature());
  settings.sampling.max_new_tokens = static_cast<int32_t>(spec.sampling().max_new_tokens());
  settings.sampling.stop_strings = {spec.sampling().stop().begin(), spec.sampling().stop().end()};
  HALFSTEP_ASSIGN_OR_RETURN(settings.train_step, TrainStepOptionsOf(spec));
  settings.train_step.calibrate_scale =
      spec.loss_scale().calibrate() && settings.learner_dtype == DType::kFloat16;
  if (settings.train_step.algorithm.regularizers.kl.coefficient > 0) {
    const std::string& named = spec.algorithm().reference();
    HALFSTEP_ASSIGN_OR_RETURN(settings.reference_directory,
                              ResolveUnder(root, named.empty() ? spec.model() : named));
  }
  HALFSTEP_ASSIGN_OR_RETURN(settings.loss_scale, LossScaleOf(spec, settings.learner_dtype));
  settings.evaluate_every = spec.evaluation().every_steps();
  settings.evaluation_samples = spec.evaluation().samples();
  settings.checkpoint_every = spec.checkpoint().every_steps();
  for (const auto& [alarm, action] : spec.health()) {
    settings.alarm_actions[alarm] = ActionOf(action);
  }
  return settings;
}

}  // namespace halfstep
