// SPDX-License-Identifier: Apache-2.0
// Names of outcomes, as metrics and files spell them.
#include "common/trajectory/trajectory.h"

namespace halfstep {

const char* Name(RewardOutcome outcome) {
  switch (outcome) {
    case RewardOutcome::kScore:
      return "score";
    case RewardOutcome::kUnscorable:
      return "unscorable";
    case RewardOutcome::kTimeout:
      return "timeout";
    case RewardOutcome::kError:
      return "error";
  }
  return "error";
}

const char* Name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "cancelled";
}

}  // namespace halfstep
