// SPDX-License-Identifier: Apache-2.0
// The row of choices that a job comes to.
#pragma once

#include "absl/status/statusor.h"
#include "learner_server/algorithm/presets.h"

namespace halfstep::v1 {
class TrainingJobSpec;
}  // namespace halfstep::v1

namespace halfstep {

// The preset with the job's choices and numbers in place of its own, and the lengths that follow
// from the job's sampling; supervised jobs have SupervisedAlgorithm. `spec` is resolved and valid
// (common/config). INVALID_ARGUMENT: reason INVALID_SPEC with every violation of ApplyOverrides,
// the reason of ValidateAlgorithm for a row that this job cannot train, or
// KL_NEEDS_SCHEDULED_LAG.
absl::StatusOr<Algorithm> ResolveAlgorithm(const v1::TrainingJobSpec& spec);

}  // namespace halfstep
