// SPDX-License-Identifier: Apache-2.0
// What an absl::Status carries beside code and message: a stable reason, metadata, and the mistakes
// in single fields. The rpc layer turns them into google.rpc.ErrorInfo and google.rpc.BadRequest.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace halfstep {

struct ErrorReason {
  std::string reason;  // UPPER_SNAKE_CASE; stable, for programs
  std::map<std::string, std::string> metadata;
};

// A mistake in one field of a request or file.
struct FieldViolation {
  std::string field;        // path such as "batch.samples"
  std::string description;  // what is wrong and what would be accepted
  int line = 0;             // of the file it was written in, from 1; 0: not known
  int column = 0;
  friend bool operator==(const FieldViolation&, const FieldViolation&) = default;
};

// An error with a reason. `code` is not OK.
absl::Status Error(absl::StatusCode code, std::string reason, const std::string& message);

// Attaches a reason, replacing an earlier one. An OK status stays as it is.
absl::Status WithReason(absl::Status status, ErrorReason reason);

// Attaches violations, replacing earlier ones. An OK status stays as it is.
absl::Status WithFieldViolations(absl::Status status,
                                 const std::vector<FieldViolation>& violations);

// Puts "context: " before the message; code, reason and violations stay.
absl::Status WithContext(const absl::Status& status, const std::string& context);

// Nothing when none was attached.
std::optional<ErrorReason> GetErrorReason(const absl::Status& status);
std::vector<FieldViolation> GetFieldViolations(const absl::Status& status);

// The reason alone; empty when none was attached.
std::string ReasonOf(const absl::Status& status);

}  // namespace halfstep
