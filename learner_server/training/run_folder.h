// SPDX-License-Identifier: Apache-2.0
// RunFolder: the output folder of one job, owned by one learner at a time.
//
//   job.json        the resolved job          checkpoints/step_N/   see train_checkpoint.h
//   metrics.jsonl   a line per step           model/                the trained model, at the end
//   samples.jsonl   a line per response, where the job saves them
//   assigned.json   how far groups were given out
//   replay.log      with batch.max_lag: see replay_log.h
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace halfstep {

// Movable; holds a lock while it lives. Not thread-safe.
class RunFolder {
 public:
  // Makes the folder, or opens it if it is this job's, without what a learner that died while it
  // wrote the model left. FAILED_PRECONDITION, reason
  // OUTPUT_DIR_NOT_EMPTY, for a folder with anything else in it; reason RUN_FOLDER_IN_USE when
  // another learner holds it.
  static absl::StatusOr<RunFolder> Open(const std::string& path, const std::string& job_id);
  RunFolder(RunFolder&& other) noexcept;
  RunFolder& operator=(RunFolder&&) = delete;
  ~RunFolder();

  const std::string& path() const { return path_; }
  std::string checkpoints() const { return path_ + "/checkpoints"; }
  static constexpr char kModelName[] = "model";
  static constexpr char kReplayLogName[] = "replay.log";  // replay_log.h

  absl::Status WriteJob(const std::string& json) const;
  absl::Status AppendMetrics(const std::string& line) const;
  absl::Status AppendSamples(const std::vector<std::string>& lines) const;
  // Drop what a run that did not finish wrote after `step`: lines of later steps and a torn last
  // line. Of evaluations those after `evaluated_step` are dropped, for they will be made again.
  absl::Status CutMetricsAfter(int64_t step, int64_t evaluated_step) const;
  absl::Status CutSamplesAfter(int64_t step) const;

  // What a checkpoint cannot know, for the learner that goes on after this one died.
  struct Assigned {
    int64_t step = 0;  // the groups of steps up to this one were given to rollouts
    int64_t groups_reassigned = 0;
  };
  absl::Status WriteAssigned(const Assigned& assigned) const;
  // Zeros where nothing readable was written.
  Assigned ReadAssigned() const;

 private:
  RunFolder(std::string path, int lock) : path_(std::move(path)), lock_(lock) {}

  std::string path_;
  int lock_ = -1;
};

// What Open would say about `path`, without making or locking anything.
absl::Status CheckRunFolder(const std::string& path, const std::string& job_id);

// Whether a run may have its folder at `path`, which lies below `root` (both real paths).
// FAILED_PRECONDITION, reason OUTPUT_DIR_NOT_ALLOWED, when it lies in the run folder of another job
// or is, or lies in, the folder of the job store, `state`; empty: there is none.
absl::Status CheckRunPlace(const std::string& path, const std::string& root,
                           const std::string& state);

}  // namespace halfstep
