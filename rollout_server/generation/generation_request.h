// SPDX-License-Identifier: Apache-2.0
// What an Engine is asked for and what it answers.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "common/trajectory/trajectory.h"
#include "kernels/ops/sampling.h"

namespace halfstep {

// One prompt to be answered `samples` times. Token j of sample i is a function of the weights, the
// prompt, the sampling parameters and {seed, domain, group, i, j} alone.
struct GroupRequest {
  std::vector<int32_t> prompt;
  uint32_t samples = 1;
  SamplingParams sampling;
  uint64_t seed = 0;
  SamplingDomain domain = SamplingDomain::kUser;
  uint64_t group = 0;
  // The weights that must generate every token; other weights are not swapped in before the group
  // is done. Without it, tokens come from whatever is served and carry its version; when that
  // changes, what was generated stays and its keys and values are computed again, so that every
  // token is one of its version given all before it.
  std::optional<uint64_t> version;
};

// The request that an assignment of the learner stands for.
GroupRequest RequestOf(GroupAssignment assignment);

// The new tokens of a request that does not say how many: 128, or what fits behind the prompt (but
// at least 1, which the engine refuses where nothing fits).
int32_t UsualNewTokens(int64_t prompt_tokens, int64_t max_sequence_tokens);

struct GeneratedToken {
  uint32_t index = 0;  // sample within the group
  int32_t token = 0;
  float log_prob = 0;
  uint64_t version = 0;
};

// Called on the engine's thread; must not block and must not call the engine's blocking members. A
// group ends with either its last sample or one failure; nothing is called after that.
struct GroupCallbacks {
  std::function<void(Sample)> on_sample;
  std::function<void(const absl::Status&)> on_failure;
  std::function<void(const GeneratedToken&)> on_token;  // may be empty
};

}  // namespace halfstep
