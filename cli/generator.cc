// SPDX-License-Identifier: Apache-2.0
#include "cli/generator.h"

#include "common/base/error_reason.h"

namespace halfstep {

absl::Status AtPrompt(const absl::Status& status, const PromptText& prompt) {
  return prompt.place.empty() ? status : WithContext(status, prompt.place);
}

}  // namespace halfstep
