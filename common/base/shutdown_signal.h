// SPDX-License-Identifier: Apache-2.0
// SIGTERM and SIGINT as something that threads can wait for.
#pragma once

#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace halfstep {

// Make one first thing in main, before other threads. The first SIGTERM or SIGINT requests an
// orderly stop; a second SIGINT (an impatient Ctrl-C) ends the process at once. Thread-safe.
class ShutdownSignal {
 public:
  // At most one exists at a time; ends the process when the system refuses a pipe.
  ShutdownSignal();
  // Restores the handlers found.
  ~ShutdownSignal();
  ShutdownSignal(const ShutdownSignal&) = delete;
  ShutdownSignal& operator=(const ShutdownSignal&) = delete;

  bool requested() const { return requested_.HasBeenNotified(); }

  // Waits for the request; returns whether it came before `deadline`.
  bool WaitUntil(absl::Time deadline) const {
    return requested_.WaitForNotificationWithDeadline(deadline);
  }

  // The same as a signal, from within the program.
  void Request();

 private:
  absl::Notification requested_;
  std::thread waiter_;
};

}  // namespace halfstep
