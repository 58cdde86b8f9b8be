// SPDX-License-Identifier: Apache-2.0
#include "cli/local_evaluation.h"

#include <utility>

#include "absl/time/clock.h"
#include "cli/local_engine.h"
#include "common/base/status_macros.h"
#include "common/reward/scoring_pool.h"
#include "learner_server/data/trajectory_buffer.h"

namespace halfstep {
namespace {

// How often progress is told; the last score ends a wait at once.
constexpr absl::Duration kProgressInterval = absl::Milliseconds(200);

absl::Status Submit(const GroupAssignment& assignment, TrajectoryBuffer* buffer, Engine* engine) {
  GroupCallbacks callbacks;
  callbacks.on_sample = [assignment, buffer](Sample sample) {
    buffer->OnSample(assignment, "here", std::move(sample));
  };
  callbacks.on_failure = [assignment, buffer](const absl::Status& why) {
    buffer->OnGroupLost(assignment, why);
  };
  return engine->Submit(RequestOf(assignment), std::move(callbacks)).status();
}

}  // namespace

absl::StatusOr<LocalEvaluation> EvaluateHere(const JobSettings& settings, const JobInputs& inputs,
                                             std::shared_ptr<const Verifier> verifier,
                                             const LocalEvaluationOptions& options) {
  std::vector<GroupTask> tasks =
      EvaluationTasks(settings, inputs.model.config.max_positions, *inputs.eval, options.point);
  LocalEngineOptions engine_options;
  engine_options.dtype = settings.rollout_dtype;
  engine_options.fp32 = settings.fp32;
  engine_options.profile = settings.profile;
  engine_options.threads = options.threads;
  engine_options.max_sequence_tokens = inputs.max_sequence_tokens;
  engine_options.samples = inputs.eval->size() * (settings.evaluation_samples + 1);

  // Each calls into those before it, and is stopped before them.
  ScoringPool scoring(std::move(verifier), inputs.tokenizer, {.threads = 1});
  TrajectoryBuffer buffer([&scoring](const std::vector<int32_t>& response,
                                     const std::string& answer, std::function<void(Reward)> done) {
    scoring.Submit(response, answer, std::move(done));
  });
  HALFSTEP_ASSIGN_OR_RETURN(const auto engine,
                            StartLocalEngine({inputs.model, inputs.tokenizer}, engine_options));

  const absl::Time start = absl::Now();
  std::vector<GroupKey> keys;
  for (GroupTask& task : tasks) {
    buffer.Expect(task.assignment, std::move(task.answer));
    keys.push_back(task.assignment.key);
    task.assignment.version = kLocalVersion;
    HALFSTEP_RETURN_IF_ERROR(Submit(task.assignment, &buffer, engine.get()));
  }
  for (;;) {
    const TrajectoryBuffer::Completeness progress =
        buffer.Await(keys, absl::Now() + kProgressInterval);
    HALFSTEP_RETURN_IF_ERROR(progress.lost);
    if (!options.on_progress(progress.scored, progress.expected)) {
      return absl::CancelledError("interrupted");
    }
    if (progress.complete()) break;
  }
  LocalEvaluation evaluation;
  evaluation.trajectories = buffer.Take(keys);
  evaluation.result = SummarizeEvaluation(evaluation.trajectories, settings.evaluation_samples);
  evaluation.result.time = absl::Now() - start;
  return evaluation;
}

}  // namespace halfstep
