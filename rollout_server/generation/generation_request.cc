// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation/generation_request.h"

#include <algorithm>

namespace halfstep {

int32_t UsualNewTokens(int64_t prompt_tokens, int64_t max_sequence_tokens) {
  return static_cast<int32_t>(std::clamp<int64_t>(max_sequence_tokens - prompt_tokens, 1, 128));
}

}  // namespace halfstep
