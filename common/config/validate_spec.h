// SPDX-License-Identifier: Apache-2.0
// What makes sense as a job, as far as the specification alone can tell.
#pragma once

#include <vector>

#include "common/base/error_reason.h"

namespace halfstep {

namespace v1 {
class TrainingJobSpec;
}

// Every mistake of a resolved specification (ResolveSpec), in the order of its keys: missing keys,
// numbers out of range, and combinations that cannot work. Says for each what would be accepted.
// Files, model and tokenizer are not looked at.
std::vector<FieldViolation> ValidateSpec(const v1::TrainingJobSpec& spec);

}  // namespace halfstep
