// SPDX-License-Identifier: Apache-2.0
// Trainer: the learner's one loop. For each step: wait for the batch, train on it, publish the next
// version, evaluate and write a checkpoint when they are due.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "learner_server/job/job_runner.h"
#include "learner_server/training/batch_source.h"
#include "learner_server/training/health_monitor.h"
#include "learner_server/training/rollout_client.h"
#include "learner_server/training/run_folder.h"
#include "learner_server/training/step_metrics.h"
#include "learner_server/training/train_checkpoint.h"

namespace halfstep {

class Tokenizer;

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
  const Tokenizer* tokenizer = nullptr;  // used where the job saves its samples
  const RunFolder* folder = nullptr;
  const CheckpointStore* checkpoints = nullptr;
  // Published sets other than the current one that batches in flight name, oldest first.
  std::vector<std::shared_ptr<const WeightSet>> older_weights;
  std::string job_json;
  RunControl* control = nullptr;
  LearnerMetrics* metrics = nullptr;
  // The samples of earlier attempts are in no counter of this process.
  bool count_earlier_samples = false;
};

// Used once, on one thread.
class Trainer {
 public:
  explicit Trainer(TrainerParts parts);

  // Runs the remaining steps, or until asked to stop. Pauses, after a checkpoint where there is
  // room, for reasons that lie outside the run: NO_ROLLOUT, GROUP_LOST, BATCH_TIMEOUT, DISK_FULL.
  // Pauses and fails for an alarm where the job says so. Failures beside: those of the scaler, of
  // the forward and of the weights, where the last checkpoint stays; and NO_MIXED_GROUPS, after a
  // checkpoint.
  absl::StatusOr<RunResult> Run();

  // The newest checkpoint of the run; empty before the first.
  const std::string& checkpoint() const { return checkpoint_; }

 private:
  absl::Status Train();
  absl::Status RunStep(StepRecord* record);
  absl::Status RunUpdates(TrainBatch* batch, StepRecord* record);
  // Gives the sequences the log-probs of the policy in force, where the algorithm reads them: those
  // of the behaviour policy where they are the same bits, else by one more forward.
  absl::Status FillOldLogProbs(TrainBatch* batch, StepRecord* record);
  // Where the batch's mismatch is about to raise the alarm: who disagrees and why. What it finds is
  // told with the alarm.
  void DiagnoseIfSuspect(const TrainBatch& batch, const StepRecord& record);
  // The master as the version in force.
  absl::Status PublishCurrent();
  // Evaluates after the step that was finished last, if that is due and was not done.
  absl::Status EvaluateIfDue();
  bool EvaluationIsDue() const;
  // Notes that the batch of `step`, and what may run ahead of it, is being given to rollouts.
  void NoteAssigned(int64_t step);
  void AddToProgress(const TrainBatch& batch, const StepRecord& record);
  void Report(const StepRecord& record);
  void ExportAlarms();
  // Emits what alarms the step raised and cleared. Fails with the alarm's name in capitals as the
  // reason where the job's action is to pause or to fail.
  absl::Status WatchHealth(const StepRecord& record);
  // Samples that arrived since the last call; those of the batch have been trained on or dropped.
  void CountSamples(const BatchStatistics& batch);
  // What the run leaves behind is dropped: a later attempt has it generated again.
  void CountAbandonedSamples();
  void AppendMetrics(const std::string& line);
  void AppendSamples(int64_t step, const std::vector<SampleRecord>& samples);
  void EmitNotice(const std::string& reason, const std::string& message);
  // Goes on without one when it cannot be written, and says so.
  void Checkpoint();
  absl::Status Finish();
  absl::Status WriteModel();
  // What a pause, a cancellation or a stop of the learner leads to.
  RunResult EndEarly(RunRequest request);

  TrainerParts parts_;
  TrainStep train_step_;
  HealthMonitor health_;
  bool alarm_pauses_ = false;
  std::string diagnosis_;  // of the mismatch that was last suspected
  std::vector<std::shared_ptr<const WeightSet>> published_;  // older ones, then the current one
  std::shared_ptr<const WeightSet> released_;  // the newest that no batch needs any more
  int64_t checkpoint_step_ = -1;
  std::string checkpoint_;
  bool metrics_failed_ = false;  // said once
  bool samples_failed_ = false;  // likewise
  BufferCounters exported_counters_;
  int64_t samples_unsettled_ = 0;  // exported as arrived, neither as trained nor as dropped
  RunFolder::Assigned assigned_;   // by this attempt and earlier ones of this run
  int64_t assigned_here_ = 0;      // the last step that this attempt gave to rollouts
  // Not by the pool of this attempt: by earlier ones, and what they had assigned and lost.
  int64_t groups_reassigned_before_ = 0;
};

}  // namespace halfstep
