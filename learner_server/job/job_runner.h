// SPDX-License-Identifier: Apache-2.0
// The seam between the job manager, which decides what runs, and the training loop, which runs it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace halfstep::v1 {
class RunSummary;
class TrainingJobEvent;
class TrainingJobSpec;
}  // namespace halfstep::v1

namespace halfstep {

// What the manager wants of a running job. Checked between steps, between the micro-batches of a
// batch that has changed no weights yet, and inside every wait.
enum class RunRequest { kNone, kPause, kCancel, kStop };

// Thread-safe. Handed to the run by the manager.
class RunControl {
 public:
  virtual ~RunControl() = default;
  virtual RunRequest request() const = 0;
  // Appends to the job's durable event log (cursor and time are filled in) and wakes watchers.
  virtual void Emit(v1::TrainingJobEvent event) = 0;
  // Progress as GetTrainingJob shows it.
  virtual void SetProgress(int64_t step, uint64_t policy_version) = 0;
};

// How a run that did not fail ended.
enum class RunOutcome {
  kSucceeded,
  kPaused,  // checkpoint written at the last finished step, where there was room
  kCancelled,
  kStopped,  // the learner is shutting down; the job goes on from its last checkpoint at the next
             // start
};

struct RunResult {
  RunOutcome outcome = RunOutcome::kSucceeded;
  // Why, for a run that paused without being asked to: an UPPER_SNAKE_CASE reason and a sentence.
  std::string reason;
  std::string message;
};

// Runs one job on the calling thread until it ends. A failure is a Status whose reason
// (common/base/error_reason.h) becomes the job's.
class JobRunner {
 public:
  virtual ~JobRunner() = default;
  // `spec` is resolved and valid. `job_id` is the last part of the job's name. `epoch` ascends with
  // every start of any job. Continues from the newest checkpoint in the run's folder if there is
  // one and the folder belongs to this job. Fills `summary` with what is known, also on failure.
  virtual absl::StatusOr<RunResult> Run(const std::string& job_id, uint64_t epoch,
                                        const v1::TrainingJobSpec& spec, RunControl* control,
                                        v1::RunSummary* summary) = 0;
  // Checks what only the learner can check (files, model, tokenizer, batch arithmetic) without
  // running.
  virtual absl::Status Check(const v1::TrainingJobSpec& spec) = 0;
};

}  // namespace halfstep
