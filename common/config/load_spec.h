// SPDX-License-Identifier: Apache-2.0
// A job from its YAML file, with every mistake reported at once.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/base/error_reason.h"

namespace halfstep {

namespace v1 {
class TrainingJobSpec;
}

// Reads `text`, which came from `file`, into `spec` as it is written: defaults are left to the
// server. INVALID_ARGUMENT, reason INVALID_SPEC, with a violation for each mistake that ParseYaml
// and (on a resolved copy) ValidateSpec find, and a message of one line "file:line:column: mistake"
// for each.
absl::Status LoadSpec(const std::string& text, const std::string& file, v1::TrainingJobSpec* spec);

// The same for a file, which may have at most 1 MiB.
absl::Status LoadSpecFile(const std::string& path, v1::TrainingJobSpec* spec);

// ValidateSpec as a status: OK, or INVALID_ARGUMENT with reason INVALID_SPEC and the violations.
absl::Status CheckSpec(const v1::TrainingJobSpec& resolved);

}  // namespace halfstep
