// SPDX-License-Identifier: Apache-2.0
// What prompts are asked and how responses are scored: the options that eval and dataset sanity
// share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "cli/engine_flags.h"
#include "halfstep/v1/training_job.pb.h"
#include "learner_server/training/job_settings.h"

namespace halfstep {

// What is given overrides the job.
struct EvaluationFlags {
  std::string model;
  std::string data;
  std::string job;
  std::string root = ".";
  std::optional<std::string> prompt_column;
  std::optional<std::string> answer_column;
  std::optional<std::string> reward;
  std::optional<std::string> reward_pattern;
  std::optional<int64_t> samples;
  std::optional<float> temperature;
  std::optional<int32_t> max_new_tokens;
  std::optional<uint64_t> seed;
  EngineFlags engine;
};

struct EvaluationPlan {
  JobSettings settings;  // eval_path: the prompts
  v1::RewardSpec reward;
};

// What --reward and --reward-pattern say, where they are given, in place of `*spec`.
// INVALID_ARGUMENT for a regex without its pattern.
absl::Status OverrideReward(const std::optional<std::string>& reward,
                            const std::optional<std::string>& pattern, v1::RewardSpec* spec);

// Those of --job, or else a job's defaults, under the flags; the prompts are `data` or the job's
// data.eval, without a job those that are too long are skipped and four samples asked for.
// INVALID_ARGUMENT for a reward that lacks its pattern, and for a job without held-out prompts
// (reason NO_EVAL_DATA); the errors of reading a job.
absl::StatusOr<EvaluationPlan> PlanEvaluation(const EvaluationFlags& flags);

// Every flag but the model, the data and the number of samples. `flags` must outlive parsing.
void AddEvaluationFlags(CLI::App& verb, EvaluationFlags& flags);

}  // namespace halfstep
