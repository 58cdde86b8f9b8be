// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "absl/status/status.h"
#include "cli/learner_client.h"

namespace halfstep {

// Watches a job until it is finished or paused (OK); else as LearnerClient::Watch.
absl::Status WatchUntilItRests(LearnerClient& client, const std::string& name,
                               const WatchOptions& options);

}  // namespace halfstep
