// SPDX-License-Identifier: Apache-2.0
// JobInputs: everything a job reads before it starts: model folder, tokenizer, data.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/hugging_face.h"
#include "learner_server/data/prompt_dataset.h"
#include "learner_server/data/rollout_pool.h"
#include "learner_server/training/job_settings.h"

namespace halfstep {

class Tokenizer;

struct JobInputs {
  HuggingFaceModel model;
  std::optional<HuggingFaceModel> reference;  // where the algorithm has a reference policy
  std::vector<ModelFile> files;               // of the model folder, as rollouts need them
  std::shared_ptr<const Tokenizer> tokenizer;
  std::optional<PromptDataset> train;  // always there in what LoadJobInputs returns
  std::optional<PromptDataset> eval;   // where the job has held-out prompts
  int64_t max_sequence_tokens = 0;     // the longest sequence that can occur
};

// Errors name the file, and the line of a dataset. Of the weights everything is checked but their
// values, which are not read.
absl::StatusOr<JobInputs> LoadJobInputs(const JobSettings& settings);

// The same for evaluation alone: the model, which must have weights, and the held-out prompts.
// INVALID_ARGUMENT (reason NO_EVAL_DATA) for settings without any.
absl::StatusOr<JobInputs> LoadEvaluationInputs(const JobSettings& settings);

// The model alone, which must have weights; max_sequence_tokens stays 0.
absl::StatusOr<JobInputs> LoadModelInputs(const JobSettings& settings);

// What rollout servers are told to load.
RolloutJob MakeRolloutJob(const JobSettings& settings, const JobInputs& inputs, uint64_t epoch);

}  // namespace halfstep
