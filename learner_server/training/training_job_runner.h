// SPDX-License-Identifier: Apache-2.0
// TrainingJobRunner: puts a job together from its specification (model, data, run folder, newest
// checkpoint) and runs the trainer on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/memory.h"
#include "common/model/transformer.h"
#include "learner_server/job/job_runner.h"
#include "learner_server/training/rollout_client.h"

namespace halfstep {

struct LearnerMetrics;

struct TrainingJobRunnerOptions {
  std::string root;         // paths of jobs are below it
  std::string state;        // folder of the job store, which no run may use; empty: there is none
  std::string incarnation;  // of this learner process
  int threads = 1;          // of the CPU backend
  int scoring_threads = 1;
  Recompute recompute = Recompute::kNone;  // memory against time; the results are the same
  RolloutClientOptions rollouts;
  // Bytes that can be taken, 0 when that is not known; the system's figure unless a test has its
  // own.
  std::function<size_t()> free_memory = [] { return FreeMemoryBytes(); };
};

// What a check has found to know about the inputs of a sound job.
struct CheckReport {
  // Rows left out because they are longer than the model's positions allow.
  int64_t train_rows_skipped = 0;
  int64_t eval_rows_skipped = 0;
};

// One job at a time. A job whose checkpoints all fail to verify pauses with reason
// NO_SOUND_CHECKPOINT, and nothing in its folder changes; so does one with batch.max_lag that is to
// go on and whose replay log does not reach its checkpoint (the reasons of ReplayLog::Open).
// A run that finds no room for its folder or for the trained model pauses too, reason DISK_FULL;
// one that finds none for a checkpoint says so and goes on.
class TrainingJobRunner final : public JobRunner {
 public:
  // `pool` and `metrics` must outlive it.
  TrainingJobRunner(TrainingJobRunnerOptions options, RolloutPool* pool, LearnerMetrics* metrics);

  absl::StatusOr<RunResult> Run(const std::string& job_id, uint64_t epoch,
                                const v1::TrainingJobSpec& spec, RunControl* control,
                                v1::RunSummary* summary) override;
  absl::Status Check(const v1::TrainingJobSpec& spec) override;
  // The same, with what a person may want to know.
  absl::StatusOr<CheckReport> Inspect(const v1::TrainingJobSpec& spec) const;

 private:
  size_t FreeOnceIdle() const;

  const TrainingJobRunnerOptions options_;
  RolloutPool* const pool_;
  LearnerMetrics* const metrics_;
  std::set<std::string> counted_jobs_;  // whose samples are in the counters of this process
};

}  // namespace halfstep
