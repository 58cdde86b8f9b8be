// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/job_inputs.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/tokenizer/tokenizer.h"
#include "learner_server/training/reference_policy.h"

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
    const std::string path = model.directory + "/" + name;
    HALFSTEP_RETURN_IF_ERROR(CheckUnder(model.root, path));
    absl::StatusOr<std::string> bytes = ReadFile(path, kMaxModelFileBytes);
    if (absl::IsNotFound(bytes.status()) && std::string(name) == "generation_config.json") continue;
    HALFSTEP_RETURN_IF_ERROR(bytes.status());
    files->push_back({name, *std::move(bytes)});
  }
  return absl::OkStatus();
}

absl::Status LoadModel(const JobSettings& settings, JobInputs* inputs) {
  HALFSTEP_ASSIGN_OR_RETURN(inputs->model,
                            OpenHuggingFaceModel(settings.model_directory, settings.root));
  if (!settings.supervised && !inputs->model.has_weights) {
    return Error(absl::StatusCode::kInvalidArgument, "MODEL_WITHOUT_WEIGHTS",
                 absl::StrCat(settings.model_directory,
                              " has no safetensors; only a supervised job can start at random"));
  }
  if (inputs->model.has_weights) HALFSTEP_RETURN_IF_ERROR(CheckHuggingFaceWeights(inputs->model));
  HALFSTEP_RETURN_IF_ERROR(ReadModelFiles(inputs->model, &inputs->files));
  for (const ModelFile& file : inputs->files) {
    if (file.name != "tokenizer.json") continue;
    HALFSTEP_ASSIGN_OR_RETURN(
        inputs->tokenizer,
        Tokenizer::FromJson(file.bytes, inputs->model.directory + "/" + file.name));
  }
  return absl::OkStatus();
}

absl::Status LoadReference(const JobSettings& settings, JobInputs* inputs) {
  HALFSTEP_ASSIGN_OR_RETURN(HuggingFaceModel reference,
                            OpenHuggingFaceModel(settings.reference_directory, settings.root));
  if (!reference.has_weights) {
    return Error(absl::StatusCode::kInvalidArgument, "MODEL_WITHOUT_WEIGHTS",
                 absl::StrCat("algorithm.reference ", settings.reference_directory,
                              " has no safetensors; name the folder of a trained model"));
  }
  HALFSTEP_RETURN_IF_ERROR(CheckReference(reference, inputs->model));
  HALFSTEP_RETURN_IF_ERROR(CheckHuggingFaceWeights(reference));
  inputs->reference = std::move(reference);
  return absl::OkStatus();
}

absl::StatusOr<PromptDataset> LoadPrompts(const JobSettings& settings, const std::string& path,
                                          const JobInputs& inputs) {
  const ModelConfig& config = inputs.model.config;
  PromptDatasetOptions options;
  options.path = path;
  options.prompt_column = settings.prompt_column;
  options.target_column = settings.target_column;
  options.max_tokens = config.max_positions;
  options.overlong = settings.overlong;
  options.encode_response = settings.supervised;
  if (settings.supervised) {
    if (config.eos_token_ids.empty()) {
      return Error(
          absl::StatusCode::kInvalidArgument, "NO_END_TOKEN",
          absl::StrCat(inputs.model.directory, " names no eos_token_id, so no response could end"));
    }
    options.end_token = config.eos_token_ids[0];
  }
  return PromptDataset::Load(options, CheckedEncode(*inputs.tokenizer, config.vocab_size));
}

// The longest sequence of what was loaded, responses included.
int64_t LongestSequence(const JobSettings& settings, const JobInputs& inputs) {
  int64_t longest = 0;
  for (const auto* prompts : {&inputs.train, &inputs.eval}) {
    if (*prompts) longest = std::max(longest, (*prompts)->longest_sequence());
  }
  if (settings.supervised) return longest;
  return std::min<int64_t>(inputs.model.config.max_positions,
                           longest + settings.sampling.max_new_tokens);
}

}  // namespace

absl::StatusOr<JobInputs> LoadJobInputs(const JobSettings& settings) {
  JobInputs inputs;
  HALFSTEP_RETURN_IF_ERROR(LoadModel(settings, &inputs));
  if (!settings.reference_directory.empty()) {
    HALFSTEP_RETURN_IF_ERROR(LoadReference(settings, &inputs));
  }
  HALFSTEP_ASSIGN_OR_RETURN(inputs.train, LoadPrompts(settings, settings.train_path, inputs));
  if (!settings.supervised && !settings.eval_path.empty()) {
    HALFSTEP_ASSIGN_OR_RETURN(inputs.eval, LoadPrompts(settings, settings.eval_path, inputs));
  }
  inputs.max_sequence_tokens = LongestSequence(settings, inputs);
  return inputs;
}

absl::StatusOr<JobInputs> LoadEvaluationInputs(const JobSettings& settings) {
  if (settings.supervised || settings.eval_path.empty()) {
    return Error(absl::StatusCode::kInvalidArgument, "NO_EVAL_DATA",
                 settings.supervised ? "only jobs with objective rl are evaluated"
                                     : "there are no held-out prompts: data.eval is not set");
  }
  JobInputs inputs;
  HALFSTEP_RETURN_IF_ERROR(LoadModel(settings, &inputs));
  HALFSTEP_ASSIGN_OR_RETURN(inputs.eval, LoadPrompts(settings, settings.eval_path, inputs));
  inputs.max_sequence_tokens = LongestSequence(settings, inputs);
  return inputs;
}

absl::StatusOr<JobInputs> LoadModelInputs(const JobSettings& settings) {
  JobInputs inputs;
  HALFSTEP_RETURN_IF_ERROR(LoadModel(settings, &inputs));
  return inputs;
}

RolloutJob MakeRolloutJob(const JobSettings& settings, const JobInputs& inputs, uint64_t epoch) {
  RolloutJob job;
  job.epoch = epoch;
  job.files = inputs.files;
  job.vocab_size = inputs.model.config.vocab_size;
  job.precision = settings.rollout_dtype;
  job.fp32 = settings.fp32;
  job.profile = settings.profile;
  job.free_versions = settings.max_lag > 0;
  job.max_sequence_tokens = inputs.max_sequence_tokens;
  job.max_sequences = std::min(settings.prompts * settings.samples, kMaxSequencesPerRollout);
  return job;
}

}  // namespace halfstep
