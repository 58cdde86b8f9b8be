// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation/generation_request.h"

#include <algorithm>
#include <utility>

namespace halfstep {

GroupRequest RequestOf(GroupAssignment assignment) {
  GroupRequest request;
  request.prompt = std::move(assignment.prompt);
  request.samples = assignment.samples;
  request.sampling = std::move(assignment.sampling);
  request.seed = assignment.seed;
  request.domain =
      assignment.key.purpose == Purpose::kTrain ? SamplingDomain::kTrain : SamplingDomain::kEval;
  request.group = assignment.key.ordinal;
  if (!assignment.free) request.version = assignment.version;
  return request;
}

int32_t UsualNewTokens(int64_t prompt_tokens, int64_t max_sequence_tokens) {
  return static_cast<int32_t>(std::clamp<int64_t>(max_sequence_tokens - prompt_tokens, 1, 128));
}

}  // namespace halfstep
