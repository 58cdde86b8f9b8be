// SPDX-License-Identifier: Apache-2.0
// Time as an interface, so that tests can move it by hand (tests/testing/fake_clock.h).
#pragma once

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace halfstep {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;

  virtual absl::Time Now() const = 0;

  // Waits until `condition` holds or `deadline` has come by this clock; returns whether it holds.
  // `mutex` is held exclusively on entry and on return, as for absl::Mutex::AwaitWithDeadline.
  virtual bool Await(absl::Mutex& mutex, const absl::Condition& condition,
                     absl::Time deadline) const = 0;

  // The system's clock; lives for ever.
  static const Clock& Real();
};

}  // namespace halfstep
