// SPDX-License-Identifier: Apache-2.0
// One line per default.
#include "common/config/resolve_spec.h"

#include "absl/strings/str_cat.h"
#include "common/metrics/names.h"
#include "halfstep/v1/training_job.pb.h"

namespace halfstep {
namespace {

void ResolveData(bool is_rl, v1::DataSpec* data) {
  auto& columns = *data->mutable_columns();
  columns.insert({"prompt", "prompt"});
  if (is_rl) {
    columns.insert({"answer", "answer"});
  } else {
    columns.insert({"response", "response"});
  }
  if (data->overlong_prompts() == v1::OVERLONG_PROMPTS_UNSPECIFIED) {
    data->set_overlong_prompts(v1::OVERLONG_PROMPTS_REFUSE);
  }
}

void ResolveRlOnly(v1::TrainingJobSpec* spec) {
  if (spec->reward().type() == v1::REWARD_TYPE_UNSPECIFIED) {
    spec->mutable_reward()->set_type(v1::REWARD_TYPE_EXACT_MATCH);
  }
  if (spec->algorithm().preset() == v1::ALGORITHM_PRESET_UNSPECIFIED) {
    spec->mutable_algorithm()->set_preset(v1::ALGORITHM_PRESET_DR_GRPO);
  }
  v1::SamplingSpec* sampling = spec->mutable_sampling();
  if (!sampling->has_temperature()) sampling->set_temperature(1);
  v1::EvaluationSpec* evaluation = spec->mutable_evaluation();
  if (!evaluation->has_every_steps()) evaluation->set_every_steps(0);
  if (!evaluation->has_samples()) evaluation->set_samples(4);
}

void ResolveBatch(bool is_rl, v1::BatchSpec* batch) {
  if (!is_rl && !batch->has_samples()) batch->set_samples(1);
  if (!batch->has_updates()) batch->set_updates(1);
  if (!batch->has_micro_batch_tokens()) batch->set_micro_batch_tokens(16384);
  if (!batch->has_lag()) batch->set_lag(0);
}

void ResolveOptimizer(v1::OptimizerSpec* optimizer) {
  if (optimizer->schedule() == v1::SCHEDULE_UNSPECIFIED) {
    optimizer->set_schedule(v1::SCHEDULE_CONSTANT);
  }
  if (!optimizer->has_warmup_steps()) optimizer->set_warmup_steps(0);
  if (!optimizer->has_weight_decay()) optimizer->set_weight_decay(0);
  if (!optimizer->has_clip_norm()) optimizer->set_clip_norm(1);
  if (optimizer->adam().empty()) {
    for (const double value : {0.9, 0.95, 1e-15}) optimizer->add_adam(value);
  }
}

}  // namespace

std::vector<const char*> HealthAlarmsOf(v1::Objective objective) {
  if (objective == v1::OBJECTIVE_SFT) return {metric::kGradientNormJump};
  return {std::begin(metric::kHealthAlarms), std::end(metric::kHealthAlarms)};
}

void ResolveSpec(const std::string& job_id, v1::TrainingJobSpec* spec) {
  if (spec->objective() == v1::OBJECTIVE_UNSPECIFIED) spec->set_objective(v1::OBJECTIVE_RL);
  const bool is_rl = spec->objective() != v1::OBJECTIVE_SFT;
  if (spec->output_dir().empty()) spec->set_output_dir(absl::StrCat("runs/", job_id));
  if (!spec->has_seed()) spec->set_seed(1);
  if (spec->profile() == v1::PROFILE_UNSPECIFIED) spec->set_profile(v1::PROFILE_BITWISE);
  v1::PrecisionSpec* precision = spec->mutable_precision();
  if (precision->rollout() == v1::PRECISION_UNSPECIFIED) precision->set_rollout(v1::PRECISION_FP16);
  if (precision->learner() == v1::PRECISION_UNSPECIFIED) precision->set_learner(v1::PRECISION_FP16);
  ResolveData(is_rl, spec->mutable_data());
  if (is_rl) ResolveRlOnly(spec);
  ResolveBatch(is_rl, spec->mutable_batch());
  ResolveOptimizer(spec->mutable_optimizer());
  if (spec->loss_scale().preset() == v1::LOSS_SCALE_PRESET_UNSPECIFIED) {
    spec->mutable_loss_scale()->set_preset(v1::LOSS_SCALE_PRESET_DEFAULT);
  }
  for (const char* alarm : HealthAlarmsOf(spec->objective())) {
    spec->mutable_health()->insert({alarm, v1::HEALTH_ACTION_WARN});
  }
  if (!spec->checkpoint().has_every_steps()) spec->mutable_checkpoint()->set_every_steps(50);
}

}  // namespace halfstep
