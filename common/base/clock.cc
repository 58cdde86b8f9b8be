// SPDX-License-Identifier: Apache-2.0
// The system's clock.
#include "common/base/clock.h"

#include "absl/time/clock.h"

namespace halfstep {
namespace {

class RealClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }

  bool Await(absl::Mutex& mutex, const absl::Condition& condition,
             absl::Time deadline) const override {
    return mutex.AwaitWithDeadline(condition, deadline);
  }
};

}  // namespace

const Clock& Clock::Real() {
  static const RealClock clock;
  return clock;
}

}  // namespace halfstep
