// SPDX-License-Identifier: Apache-2.0
// GenerationService: direct generation with the weights being served, for people and evaluation.
#pragma once

#include <memory>
#include <string>

#include "rollout_server/job_session.h"

namespace grpc {
class Service;
}

namespace halfstep {

// `session` must outlive the server that hosts the service. Generation shares the engine with the
// learner's work and never holds back a change of weights. At most 16 calls at once, others get
// RESOURCE_EXHAUSTED; before any weights UNAVAILABLE (reason NO_WEIGHTS).
std::unique_ptr<grpc::Service> MakeGenerationService(std::string rollout_id, JobSession* session);

}  // namespace halfstep
