// SPDX-License-Identifier: Apache-2.0
// Evaluation on held-out prompts through the rollout servers, at one policy version.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "learner_server/data/prompt_dataset.h"
#include "learner_server/training/job_settings.h"
#include "learner_server/training/rollout_client.h"

namespace halfstep {

struct EvaluationResult {
  double accuracy = 0;  // mean reward of `samples` responses per prompt at the training temperature
  double greedy = 0;    // mean reward of the greedy response
  int64_t prompts = 0;
  int64_t samples = 0;  // sampled responses per prompt
  int64_t tokens = 0;
  absl::Duration time;
};

// What is evaluated: the weights published as `version`, after batch `step`.
struct EvaluationPoint {
  int64_t step = 0;
  uint64_t version = 0;
};

// A response without a score counts as 0. Errors are those of RolloutClient::Collect.
absl::StatusOr<EvaluationResult> Evaluate(const JobSettings& settings, int64_t max_positions,
                                          const PromptDataset& prompts,
                                          const EvaluationPoint& point, RolloutClient* client);

}  // namespace halfstep
