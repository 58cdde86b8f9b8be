// SPDX-License-Identifier: Apache-2.0
// Scoring one response against the answer of its row.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/trajectory/trajectory.h"

namespace halfstep {

namespace v1 {
class RewardSpec;
}

// Immutable and thread-safe; a function of its arguments alone, whose work is bounded.
class Verifier {
 public:
  virtual ~Verifier() = default;

  // kScore with 0 or 1; kUnscorable when the row's answer cannot be compared with; kTimeout when
  // the bound on the work was met; kError when the verifier itself failed. A response without an
  // answer in it is wrong, not unscorable.
  virtual Reward Score(const std::string& response, const std::string& answer) const = 0;
};

// The verifier of a resolved specification. INVALID_ARGUMENT (reason INVALID_PATTERN, violation in
// reward.pattern) for a pattern that is no regular expression.
absl::StatusOr<std::unique_ptr<const Verifier>> MakeVerifier(const v1::RewardSpec& spec);

}  // namespace halfstep
