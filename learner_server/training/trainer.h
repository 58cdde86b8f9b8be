// SPDX-License-Identifier: Apache-2.0
// Trainer: the learner's one loop. For each step: wait for the batch, train on it, publish the next
// version, evaluate and write a checkpoint when they are due.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "learner_server/job/job_runner.h"
#include "learner_server/training/batch_source.h"
#include "learner_server/training/rollout_client.h"
#include "learner_server/training/run_folder.h"
#include "learner_server/training/step_metrics.h"
#include "learner_server/training/train_checkpoint.h"

namespace halfstep {

// What a run is made of. Everything outlives the trainer; state and progress are those of the
// newest checkpoint or of a new run.
struct TrainerParts {
  ExecContext ctx;
  const JobSettings* settings = nullptr;
  TrainState* state = nullptr;
  RunProgress* progress = nullptr;
  BatchSource* source = nullptr;
  RolloutClient* client = nullptr;              // null for supervised jobs
  const PromptDataset* eval_prompts = nullptr;  // null: nothing is evaluated
  int64_t max_positions = 0;
  const RunFolder* folder = nullptr;
  const CheckpointStore* checkpoints = nullptr;
  // Published sets other than the current one that batches in flight name, oldest first.
  std::vector<std::shared_ptr<const WeightSet>> older_weights;
  std::string job_json;
  RunControl* control = nullptr;
  LearnerMetrics* metrics = nullptr;
};

// Used once, on one thread.
class Trainer {
 public:
  explicit Trainer(TrainerParts parts);

  // Runs the remaining steps, or until asked to stop. Failures: those of the scaler, of the
  // forward, of the weights and of waiting; the last checkpoint stays.
  absl::StatusOr<RunResult> Run();

  // The newest checkpoint of the run; empty before the first.
  const std::string& checkpoint() const { return checkpoint_; }

 private:
  absl::Status Train();
  absl::Status RunStep(StepRecord* record);
  absl::Status RunUpdates(const TrainBatch& batch, StepRecord* record);
  // The master as the version in force.
  absl::Status PublishCurrent();
  absl::Status EvaluateNow(std::optional<EvaluationResult>* result);
  bool EvaluationIsDue() const;
  // Notes that the batch of `step`, and what may run ahead of it, is being given to rollouts.
  void NoteAssigned(int64_t step);
  void AddToProgress(const TrainBatch& batch, const StepRecord& record);
  void Report(const StepRecord& record);
  void AppendMetrics(const std::string& line);
  void EmitNotice(const std::string& reason, const std::string& message);
  // Goes on without one when it cannot be written, and says so.
  void Checkpoint();
  absl::Status Finish();
  // What a pause, a cancellation or a stop of the learner leads to.
  RunResult EndEarly(RunRequest request);

  TrainerParts parts_;
  TrainStep train_step_;
  std::vector<std::shared_ptr<const WeightSet>> published_;  // older ones, then the current one
  int64_t checkpoint_step_ = -1;
  std::string checkpoint_;
  bool metrics_failed_ = false;  // said once
  BufferCounters exported_counters_;
  RunFolder::Assigned assigned_;  // by this attempt and earlier ones of this run
  int64_t assigned_here_ = 0;     // the last step that this attempt gave to rollouts
  // Not by the pool of this attempt: by earlier ones, and what they had assigned and lost.
  int64_t groups_reassigned_before_ = 0;
};

}  // namespace halfstep
