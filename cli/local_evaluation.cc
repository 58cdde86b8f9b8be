// SPDX-License-Identifier: Apache-2.0
#include "cli/local_evaluation.h"

#include <utility>

#include "absl/time/clock.h"
#include "cli/local_engine.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

// How often progress is told; the last score ends a wait at once.
constexpr absl::Duration kProgressInterval = absl::Milliseconds(200);

}  // namespace

LocalSampler::LocalSampler(std::shared_ptr<const Verifier> verifier,
                           std::shared_ptr<const Tokenizer> tokenizer)
    : scoring_(std::move(verifier), std::move(tokenizer), {.threads = 1}),
      buffer_([this](const std::vector<int32_t>& response, const std::string& answer,
                     std::function<void(Reward)> done) {
        scoring_.Submit(response, answer, std::move(done));
      }) {}

absl::StatusOr<std::unique_ptr<LocalSampler>> LocalSampler::Start(
    const JobSettings& settings, const JobInputs& inputs, std::shared_ptr<const Verifier> verifier,
    const LocalSamplerOptions& options) {
  LocalEngineOptions engine_options;
  engine_options.dtype = settings.rollout_dtype;
  engine_options.fp32 = settings.fp32;
  engine_options.profile = settings.profile;
  engine_options.threads = options.threads;
  engine_options.max_sequence_tokens = inputs.max_sequence_tokens;
  engine_options.samples = options.samples;
  std::unique_ptr<LocalSampler> sampler(new LocalSampler(std::move(verifier), inputs.tokenizer));
  HALFSTEP_ASSIGN_OR_RETURN(sampler->engine_,
                            StartLocalEngine({inputs.model, inputs.tokenizer}, engine_options));
  return sampler;
}

absl::Status LocalSampler::Submit(const GroupAssignment& assignment) {
  GroupCallbacks callbacks;
  callbacks.on_sample = [this, assignment](Sample sample) {
    buffer_.OnSample(assignment, "here", std::move(sample));
  };
  callbacks.on_failure = [this, assignment](const absl::Status& why) {
    buffer_.OnGroupLost(assignment, why);
  };
  return engine_->Submit(RequestOf(assignment), std::move(callbacks)).status();
}

absl::StatusOr<std::vector<Trajectory>> LocalSampler::Collect(std::vector<GroupTask> tasks,
                                                              const SamplingProgress& on_progress) {
  std::vector<GroupKey> keys;
  for (GroupTask& task : tasks) {
    buffer_.Expect(task.assignment, std::move(task.answer));
    keys.push_back(task.assignment.key);
    task.assignment.version = kLocalVersion;
    HALFSTEP_RETURN_IF_ERROR(Submit(task.assignment));
  }
  for (;;) {
    const TrajectoryBuffer::Completeness progress =
        buffer_.Await(keys, absl::Now() + kProgressInterval);
    HALFSTEP_RETURN_IF_ERROR(progress.lost);
    if (!on_progress(progress.scored, progress.expected)) {
      return absl::CancelledError("interrupted");
    }
    if (progress.complete()) break;
  }
  return buffer_.Take(keys);
}

absl::StatusOr<LocalEvaluation> EvaluateHere(const JobSettings& settings, const JobInputs& inputs,
                                             std::shared_ptr<const Verifier> verifier,
                                             const LocalEvaluationOptions& options) {
  LocalSamplerOptions sampler_options;
  sampler_options.threads = options.threads;
  sampler_options.samples = inputs.eval->size() * (settings.evaluation_samples + 1);
  HALFSTEP_ASSIGN_OR_RETURN(
      const auto sampler,
      LocalSampler::Start(settings, inputs, std::move(verifier), sampler_options));
  const absl::Time start = absl::Now();
  LocalEvaluation evaluation;
  HALFSTEP_ASSIGN_OR_RETURN(
      evaluation.trajectories,
      sampler->Collect(
          EvaluationTasks(settings, inputs.model.config.max_positions, *inputs.eval, options.point),
          options.on_progress));
  evaluation.result = SummarizeEvaluation(evaluation.trajectories, settings.evaluation_samples);
  evaluation.result.time = absl::Now() - start;
  return evaluation;
}

}  // namespace halfstep
