// SPDX-License-Identifier: Apache-2.0
// What the exit codes of `halfstep` mean; docs/cli.md lists them.
#pragma once

#include "absl/status/status.h"

namespace halfstep {

enum ExitCode : int {
  kExitOk = 0,
  kExitFailure = 1,      // anything that has no code of its own
  kExitDifferent = 1,    // diff, replay: not equal; what fails there has another code
  kExitBadInput = 2,     // command line, file or request
  kExitNotFound = 3,     // job, model, file or binary
  kExitWrongState = 4,   // the job's state, or a folder's, does not allow it
  kExitUnreachable = 5,  // no server there, or it did not answer in time
  kExitDenied = 6,       // credentials or role
  kExitJobFailed = 7,    // the job ended as failed, cancelled or paused
  kExitInterrupted = 130,
};

ExitCode ExitCodeOf(const absl::Status& status);

}  // namespace halfstep
