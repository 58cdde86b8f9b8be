// SPDX-License-Identifier: Apache-2.0
// JobSettings: a resolved specification in the terms of the trainer.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "common/model/fp32_parts.h"
#include "common/trajectory/trajectory.h"
#include "kernels/dtype.h"
#include "kernels/exec_context.h"
#include "learner_server/data/prompt_dataset.h"
#include "learner_server/training/loss_scaler.h"
#include "learner_server/training/train_step.h"

namespace halfstep::v1 {
class TrainingJobSpec;
}  // namespace halfstep::v1

namespace halfstep {

// What an alarm that is raised does, beside saying so.
enum class AlarmAction { kWarn, kPause, kFail };

struct JobSettings {
  bool supervised = false;
  std::string root;  // of the learner
  // Absolute, below the root; eval_path may be empty.
  std::string model_directory;
  std::string output_directory;
  std::string reference_directory;  // empty: the algorithm has no reference policy
  std::string train_path;
  std::string eval_path;
  std::string prompt_column;
  std::string target_column;  // answer or response
  OverlongPolicy overlong = OverlongPolicy::kRefuse;

  uint64_t seed = 1;
  int64_t steps = 0;
  Profile profile = Profile::kBitwise;
  DType rollout_dtype = DType::kFloat16;
  DType learner_dtype = DType::kFloat16;
  Fp32Parts fp32;  // of both sides

  int64_t prompts = 0;  // per step; rows for supervised jobs
  int64_t samples = 1;
  int64_t updates = 1;
  int64_t lag = 0;      // scheduled; 0 with max_lag
  int64_t max_lag = 0;  // of free generation; 0: the lag is scheduled
  // Batches that generation may be ahead of training.
  int64_t ahead() const { return max_lag > 0 ? max_lag : lag; }
  bool permute_rewards = false;
  bool save_samples = false;
  SamplingParams sampling;

  TrainStepOptions train_step;
  LossScaleOptions loss_scale;

  int64_t evaluate_every = 0;
  int64_t evaluation_samples = 0;
  int64_t checkpoint_every = 0;

  std::map<std::string, AlarmAction> alarm_actions;  // by the alarm's name; every one of the job's
};

// `spec` is resolved (common/config/resolve_spec.h) and valid; its paths are opened below `root`.
// Fails for paths that leave the root, for loss scales that no scaler can work with, and for
// algorithms as ResolveAlgorithm does.
absl::StatusOr<JobSettings> MakeJobSettings(const v1::TrainingJobSpec& spec,
                                            const std::string& root);

}  // namespace halfstep
