// SPDX-License-Identifier: Apache-2.0
// One job on this machine from start to end: a cluster of its own, the job, its progress.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "cli/commands.h"
#include "halfstep/v1/training_job.pb.h"

namespace halfstep {

struct LocalRunOptions {
  v1::TrainingJobSpec spec;
  std::string root;           // of the learner
  std::string run_directory;  // logs of the processes
  int rollouts = 2;
  // Submitting with the same one finds the job of an earlier run that did not finish.
  std::string request_id;
};

struct LocalRun {
  v1::TrainingJob job;  // finished or paused
  double ready_seconds = 0;
  int64_t peak_memory_bytes = 0;  // sum of every process's peak
};

// Starts a learner and rollouts (the binaries beside this one), submits the job (and resumes it if
// it was paused), shows its progress, and stops everything, whatever happens. CANCELLED when
// interrupted.
absl::StatusOr<LocalRun> RunHere(const LocalRunOptions& options, CommandContext& context);

}  // namespace halfstep
