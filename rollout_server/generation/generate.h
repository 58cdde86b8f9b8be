// SPDX-License-Identifier: Apache-2.0
// Using an Engine without a server: submit, wait, take everything.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rollout_server/generation/engine.h"

namespace halfstep {

// Generates every group on `engine`, as many at once as it accepts. Element i holds the samples of
// requests[i], ascending in index. The first failure ends all of them and is returned;
// DEADLINE_EXCEEDED says how many groups were done. Call from any thread but the engine's.
absl::StatusOr<std::vector<std::vector<Sample>>> GenerateAll(Engine* engine,
                                                             std::vector<GroupRequest> requests,
                                                             absl::Time deadline);

}  // namespace halfstep
