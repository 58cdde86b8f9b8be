// SPDX-License-Identifier: Apache-2.0
// A process of ours that never outlives us.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace halfstep {

// Killed and reaped when destroyed. The kernel kills it when the thread that started it ends, and
// so when this process dies, however it dies. It has its own process group: a Ctrl-C at the
// terminal reaches this process only, which then stops its children in order. Not thread-safe.
class ChildProcess {
 public:
  // `arguments[0]` is the path of the binary; output goes to the end of `log_file`. NOT_FOUND when
  // there is no such binary.
  static absl::StatusOr<ChildProcess> Start(const std::vector<std::string>& arguments,
                                            const std::string& log_file);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();

  pid_t pid() const { return pid_; }
  // Readable (poll) once the process has ended.
  int pidfd() const { return pidfd_; }

  // Whether it has ended; reaps it if so.
  bool Ended();
  // How it ended: "exit code 1", "signal 9 (Killed)"; after Ended() said so.
  const std::string& how() const { return how_; }

  void Signal(int signal_number);
  // Waits until it has ended; returns whether it did before `deadline`.
  bool WaitUntil(absl::Time deadline);

  // Largest resident memory so far, in bytes; 0 once it has ended.
  int64_t PeakMemoryBytes() const;

 private:
  ChildProcess(pid_t pid, int pidfd) : pid_(pid), pidfd_(pidfd) {}
  void KillAndReap();

  pid_t pid_ = -1;  // -1: none, or ended and reaped
  int pidfd_ = -1;
  std::string how_;
};

// Peak resident memory of a process, from /proc; 0 when it is not there.
int64_t PeakMemoryBytesOf(pid_t pid);

}  // namespace halfstep
