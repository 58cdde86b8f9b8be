// SPDX-License-Identifier: Apache-2.0
// Replay: the updates of a run with batch.max_lag once more, from its replay log and its initial
// model, by the trainer itself and without any rollout. The master weights must come out the same
// after each step, to the last bit.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"

namespace halfstep {

struct ReplayOptions {
  std::string run;   // its folder
  std::string root;  // real path; the job's paths are below it
  int threads = 1;
  // Told after each step; false ends the replay. May be empty.
  std::function<bool(int64_t step)> go_on;
};

struct ReplayResult {
  int64_t steps = 0;  // that were trained again
  bool equal = true;
  // Where it is not: the first step whose outcome differs, and what does.
  int64_t differs_after = 0;
  std::string what;
  std::string recorded, replayed;
  // The log ends with the outcome of the run. Otherwise its attempt was cut off, or goes on, and
  // nothing says what its last step came to.
  bool has_end = false;
  // What the last batch of the log ended in, when it was trained again: most likely what the run
  // ended in.
  absl::Status failure;
  bool torn = false;                         // a last record that is not whole was left out
  std::string weights_digest, state_digest;  // of the last step that was trained again
};

// NOT_FOUND, reason NO_REPLAY_LOG, for a run without; DATA_LOSS, reason REPLAY_LOG_DAMAGED;
// FAILED_PRECONDITION, reason REPLAY_LOG_OF_OTHER_RUN, when job.json, the initial model or this
// machine's numerics are not those of the run; INVALID_ARGUMENT, reason NOT_A_RUN, for a folder
// without job.json; CANCELLED when `go_on` says so; the errors of loading the job and its model.
// Writes nothing but a temporary folder, which it removes.
absl::StatusOr<ReplayResult> ReplayRun(const ReplayOptions& options);

}  // namespace halfstep
