// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/memory_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/memory.h"
#include "common/model/model_weights.h"
#include "common/model/transformer.h"
#include "learner_server/training/job_inputs.h"
#include "learner_server/training/job_settings.h"

namespace halfstep {
namespace {

// Tokens of the largest micro-batch: the budget, or a longer sequence alone, but no more than an
// update has.
int64_t MicroBatchTokens(const JobSettings& settings, int64_t max_sequence_tokens) {
  const int64_t most = std::max(settings.train_step.micro_batch_tokens, max_sequence_tokens);
  const int64_t sequences = settings.prompts * settings.samples / settings.updates;
  return sequences >= most ? most : std::min(most, sequences * max_sequence_tokens);
}

size_t ActivationBytes(const JobSettings& settings, const ModelConfig& config, int64_t tokens) {
  const DType hidden = settings.fp32.hidden_dtype(settings.learner_dtype);
  const ActivationDTypes dtypes = {settings.learner_dtype,
                                   settings.fp32.residual_dtype(settings.learner_dtype)};
  const Recompute recompute = settings.train_step.recompute;
  ModelConfig layer = config;
  layer.layers = 1;
  // The backward holds the gradients of about what a layer keeps, and what it recomputes.
  const size_t layers = recompute == Recompute::kLayer ? 2 : 1;
  const size_t temporaries =
      layers * TrainActivations::Bytes(layer, dtypes, tokens, tokens, Recompute::kNone);
  const size_t head = 2 * static_cast<size_t>(tokens * config.hidden_size) * SizeOf(hidden);
  return TrainActivations::Bytes(config, dtypes, tokens, tokens, recompute) + temporaries + head;
}

bool ScoresAgain(const JobSettings& settings, const JobInputs& inputs) {
  if (settings.supervised) return false;
  return inputs.eval || inputs.reference ||
         RatioDenominator(settings.train_step.algorithm) == PolicySource::kOld;
}

size_t ScoringBytes(const JobSettings& settings, const ModelConfig& config, int64_t tokens) {
  const DType hidden = settings.fp32.hidden_dtype(settings.learner_dtype);
  const ActivationDTypes dtypes = {settings.learner_dtype,
                                   settings.fp32.residual_dtype(settings.learner_dtype)};
  return TrainActivations::Bytes(config, dtypes, tokens, tokens, Recompute::kLayer) +
         static_cast<size_t>(tokens * config.hidden_size) * SizeOf(hidden);
}

}  // namespace

MemoryPlan PlanMemory(const JobSettings& settings, const JobInputs& inputs) {
  const ModelConfig& config = inputs.model.config;
  const ParameterLayout& layout = *inputs.model.layout;
  const auto elements = static_cast<size_t>(layout.buffer_elements());
  MemoryPlan plan;
  plan.optimizer = 3 * elements * sizeof(float);
  plan.gradients = ModelGradients::Bytes(layout);
  plan.weights =
      ModelWeights::Bytes(config, layout, settings.learner_dtype, inputs.max_sequence_tokens);
  if (inputs.reference) plan.reference = plan.weights;  // the same shapes
  if (!settings.supervised) {
    // One for each version that a batch in flight may name, or the one before where none names any;
    // the last one that none needs; and the next while it is made.
    const auto sets = static_cast<size_t>(settings.max_lag > 0 ? 1 : settings.lag) + 3;
    plan.published = sets * elements * SizeOf(settings.rollout_dtype);
  }
  plan.micro_batch_tokens = MicroBatchTokens(settings, inputs.max_sequence_tokens);
  plan.activations = ActivationBytes(settings, config, plan.micro_batch_tokens);
  if (ScoresAgain(settings, inputs)) {
    plan.scoring = ScoringBytes(settings, config, plan.micro_batch_tokens);
  }
  return plan;
}

absl::Status CheckMemory(const MemoryPlan& plan, size_t free_bytes) {
  if (free_bytes == 0 || plan.total() <= free_bytes) return absl::OkStatus();
  const size_t passes = plan.activations + plan.scoring;
  const bool model_fits = plan.total() - passes < free_bytes;
  return Error(
      absl::StatusCode::kResourceExhausted, "OUT_OF_MEMORY",
      absl::StrCat(
          "the learner needs about ", ShowBytes(plan.total()), " for this job, and ",
          ShowBytes(free_bytes), " are free: ", ShowBytes(plan.optimizer),
          " for master weights and moments, ", ShowBytes(plan.gradients), " for gradients, ",
          ShowBytes(plan.weights), " for weights in the learner's precision, ",
          plan.reference == 0
              ? ""
              : absl::StrCat(ShowBytes(plan.reference), " for those of the reference policy, "),
          ShowBytes(plan.published), " for published weights, ", ShowBytes(passes),
          " for micro-batches of ", plan.micro_batch_tokens, " tokens; ",
          model_fits ? "lower batch.micro_batch_tokens, start the learner with --recompute layer, "
                       "or take a larger machine"
                     : "take a smaller model or a larger machine"));
}

}  // namespace halfstep
