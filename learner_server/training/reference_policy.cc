// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/reference_policy.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/hugging_face.h"
#include "common/model/parameter_buffer.h"
#include "kernels/ops/elementwise.h"
#include "learner_server/training/job_inputs.h"
#include "learner_server/training/job_settings.h"
#include "learner_server/training/score_responses.h"

namespace halfstep {
namespace {

// As `model_type` of a config.json.
const char* Name(Architecture architecture) {
  switch (architecture) {
    case Architecture::kLlama:
      return "llama";
    case Architecture::kQwen2:
      return "qwen2";
    case Architecture::kQwen3:
      return "qwen3";
  }
  return "?";
}

}  // namespace

absl::Status CheckReference(const HuggingFaceModel& reference, const HuggingFaceModel& model) {
  const ModelConfig& theirs = reference.config;
  const ModelConfig& ours = model.config;
  const auto refuse = [&](const char* what, const auto& their_value, const auto& our_value) {
    return Error(absl::StatusCode::kInvalidArgument, "REFERENCE_MISMATCH",
                 absl::StrCat("algorithm.reference ", reference.directory, " has ", what, " ",
                              their_value, ", the model ", model.directory, " has ", our_value,
                              "; take a checkpoint of the same architecture and vocabulary"));
  };
  const std::pair<const char*, int64_t ModelConfig::*> kSizes[] = {
      {"vocab_size", &ModelConfig::vocab_size},
      {"hidden_size", &ModelConfig::hidden_size},
      {"intermediate_size", &ModelConfig::intermediate_size},
      {"num_hidden_layers", &ModelConfig::layers},
      {"num_attention_heads", &ModelConfig::heads},
      {"num_key_value_heads", &ModelConfig::kv_heads},
      {"head_dim", &ModelConfig::head_dim}};
  if (theirs.architecture != ours.architecture) {
    return refuse("architecture", Name(theirs.architecture), Name(ours.architecture));
  }
  for (const auto& [name, size] : kSizes) {
    if (theirs.*size != ours.*size) return refuse(name, theirs.*size, ours.*size);
  }
  return absl::OkStatus();
}

ReferencePolicy::ReferencePolicy(const ExecContext& ctx, const JobSettings& settings,
                                 const JobInputs& inputs)
    : ctx_(ctx),
      fp32_(settings.fp32),
      temperature_(settings.train_step.temperature),
      micro_batch_tokens_(settings.train_step.micro_batch_tokens),
      weights_(inputs.reference->config, inputs.reference->layout, settings.learner_dtype,
               inputs.max_sequence_tokens, ctx.device) {}

absl::StatusOr<std::unique_ptr<ReferencePolicy>> ReferencePolicy::Load(const ExecContext& ctx,
                                                                       const JobSettings& settings,
                                                                       const JobInputs& inputs) {
  // The constructor is private.
  std::unique_ptr<ReferencePolicy> policy(new ReferencePolicy(ctx, settings, inputs));
  ParameterBuffer read(inputs.reference->layout, DType::kFloat32, "reference_as_read", ctx.device);
  HALFSTEP_RETURN_IF_ERROR(LoadHuggingFaceWeights(*inputs.reference, &read));
  Cast(ctx, read.flat(), Overflow::kInfinity, policy->weights_.parameters().flat());
  policy->weights_.Pack(ctx);
  return policy;
}

absl::Status ReferencePolicy::Score(const std::function<bool()>& stop,
                                    std::span<TrainSequence> sequences) const {
  ScoreOptions options;
  options.fp32 = fp32_;
  options.temperature = temperature_;
  options.micro_batch_tokens = micro_batch_tokens_;
  options.go_on = [&stop](int64_t) { return !stop(); };
  absl::StatusOr<std::vector<std::vector<float>>> scored =
      ScoreResponses(ctx_, weights_, sequences, options);
  if (!scored.ok()) return WithContext(scored.status(), "the reference policy");
  for (size_t i = 0; i < sequences.size(); ++i) {
    sequences[i].reference = std::move((*scored)[i]);
  }
  return absl::OkStatus();
}

}  // namespace halfstep
