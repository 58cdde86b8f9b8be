// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/job_inputs.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/tokenizer/tokenizer.h"

namespace halfstep {
namespace {

constexpr size_t kMaxModelFileBytes = size_t{64} << 20;
constexpr int64_t kMaxSequencesPerRollout = 256;

// Ids beyond the embedding would read past it.
EncodeText CheckedEncode(const Tokenizer& tokenizer, int64_t vocab_size) {
  return [&tokenizer, vocab_size](const std::string& text,
                                  TextRole role) -> absl::StatusOr<std::vector<int32_t>> {
    std::vector<int32_t> tokens = tokenizer.Encode(
        text, role == TextRole::kPrompt ? SpecialTokens::kInclude : SpecialTokens::kOmit);
    for (const int32_t token : tokens) {
      if (token < vocab_size) continue;
      return Error(absl::StatusCode::kInvalidArgument, "TOKENIZER_MISMATCH",
                   absl::StrCat("the tokenizer gives token ", token, ", the model has only ",
                                vocab_size, "; they do not belong together"));
    }
    return tokens;
  };
}

absl::Status ReadModelFiles(const HuggingFaceModel& model, std::vector<ModelFile>* files) {
  for (const char* name : {"config.json", "tokenizer.json", "generation_config.json"}) {
    absl::StatusOr<std::string> bytes = ReadFile(model.directory + "/" + name, kMaxModelFileBytes);
    if (absl::IsNotFound(bytes.status()) && std::string(name) == "generation_config.json") continue;
    HALFSTEP_RETURN_IF_ERROR(bytes.status());
    files->push_back({name, *std::move(bytes)});
  }
  return absl::OkStatus();
}

absl::Status LoadData(const JobSettings& settings, JobInputs* inputs) {
  const ModelConfig& config = inputs->model.config;
  const EncodeText encode = CheckedEncode(*inputs->tokenizer, config.vocab_size);
  PromptDatasetOptions options;
  options.path = settings.train_path;
  options.prompt_column = settings.prompt_column;
  options.target_column = settings.target_column;
  options.max_tokens = config.max_positions;
  options.overlong = settings.overlong;
  options.encode_response = settings.supervised;
  if (settings.supervised) {
    if (config.eos_token_ids.empty()) {
      return Error(absl::StatusCode::kInvalidArgument, "NO_END_TOKEN",
                   absl::StrCat(inputs->model.directory,
                                " names no eos_token_id, so no response could end"));
    }
    options.end_token = config.eos_token_ids[0];
  }
  HALFSTEP_ASSIGN_OR_RETURN(inputs->train, PromptDataset::Load(options, encode));
  inputs->max_sequence_tokens = inputs->train->longest_sequence();
  if (settings.supervised) return absl::OkStatus();
  if (!settings.eval_path.empty()) {
    options.path = settings.eval_path;
    HALFSTEP_ASSIGN_OR_RETURN(inputs->eval, PromptDataset::Load(options, encode));
    inputs->max_sequence_tokens =
        std::max(inputs->max_sequence_tokens, inputs->eval->longest_sequence());
  }
  inputs->max_sequence_tokens = std::min<int64_t>(
      config.max_positions, inputs->max_sequence_tokens + settings.sampling.max_new_tokens);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<JobInputs> LoadJobInputs(const JobSettings& settings) {
  JobInputs inputs;
  HALFSTEP_ASSIGN_OR_RETURN(inputs.model, OpenHuggingFaceModel(settings.model_directory));
  if (!settings.supervised && !inputs.model.has_weights) {
    return Error(absl::StatusCode::kInvalidArgument, "MODEL_WITHOUT_WEIGHTS",
                 absl::StrCat(settings.model_directory,
                              " has no safetensors; only a supervised job can start at random"));
  }
  if (inputs.model.has_weights) HALFSTEP_RETURN_IF_ERROR(CheckHuggingFaceWeights(inputs.model));
  HALFSTEP_RETURN_IF_ERROR(ReadModelFiles(inputs.model, &inputs.files));
  for (const ModelFile& file : inputs.files) {
    if (file.name != "tokenizer.json") continue;
    HALFSTEP_ASSIGN_OR_RETURN(
        inputs.tokenizer,
        Tokenizer::FromJson(file.bytes, inputs.model.directory + "/" + file.name));
  }
  HALFSTEP_RETURN_IF_ERROR(LoadData(settings, &inputs));
  return inputs;
}

RolloutJob MakeRolloutJob(const JobSettings& settings, const JobInputs& inputs, uint64_t epoch) {
  RolloutJob job;
  job.epoch = epoch;
  job.files = inputs.files;
  job.vocab_size = inputs.model.config.vocab_size;
  job.precision = settings.rollout_dtype;
  job.profile = settings.profile;
  job.max_sequence_tokens = inputs.max_sequence_tokens;
  job.max_sequences = std::min(settings.prompts * settings.samples, kMaxSequencesPerRollout);
  return job;
}

}  // namespace halfstep
