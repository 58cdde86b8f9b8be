// SPDX-License-Identifier: Apache-2.0
// Groups of a job generated and scored by an engine of this process instead of rollout servers: the
// same groups, the same draws, the same scores.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/reward/scoring_pool.h"
#include "common/reward/verifier.h"
#include "learner_server/data/trajectory_buffer.h"
#include "learner_server/training/evaluation.h"
#include "learner_server/training/job_inputs.h"
#include "rollout_server/generation/engine.h"

namespace halfstep {

// Told a few times a second how many responses are scored; false ends the work.
using SamplingProgress = std::function<bool(int64_t done, int64_t total)>;

struct LocalSamplerOptions {
  int threads = 0;      // of the engine; 0: one per core
  int64_t samples = 0;  // responses that one Collect asks for, at most
};

// Not thread-safe.
class LocalSampler {
 public:
  // `inputs` are those of LoadEvaluationInputs(settings). The errors of loading weights and of the
  // engine.
  static absl::StatusOr<std::unique_ptr<LocalSampler>> Start(
      const JobSettings& settings, const JobInputs& inputs,
      std::shared_ptr<const Verifier> verifier, const LocalSamplerOptions& options);

  // The responses to `tasks`, in their order. No key may come twice. CANCELLED when `on_progress`
  // says so, after which nothing more can be collected; the errors of the engine.
  absl::StatusOr<std::vector<Trajectory>> Collect(std::vector<GroupTask> tasks,
                                                  const SamplingProgress& on_progress);

 private:
  LocalSampler(std::shared_ptr<const Verifier> verifier,
               std::shared_ptr<const Tokenizer> tokenizer);

  absl::Status Submit(const GroupAssignment& assignment);

  // Each calls into those before it, and is stopped before them.
  ScoringPool scoring_;
  TrajectoryBuffer buffer_;
  std::unique_ptr<Engine> engine_;
};

struct LocalEvaluationOptions {
  EvaluationPoint point;
  int threads = 0;  // of the engine; 0: one per core
  SamplingProgress on_progress;
};

struct LocalEvaluation {
  EvaluationResult result;
  std::vector<Trajectory> trajectories;  // in the order of EvaluationTasks
};

// A job's evaluation on held-out prompts. `inputs` are those of LoadEvaluationInputs(settings). The
// errors of LocalSampler.
absl::StatusOr<LocalEvaluation> EvaluateHere(const JobSettings& settings, const JobInputs& inputs,
                                             std::shared_ptr<const Verifier> verifier,
                                             const LocalEvaluationOptions& options);

}  // namespace halfstep
