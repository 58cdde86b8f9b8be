// SPDX-License-Identifier: Apache-2.0
// A bar on the last line of a terminal; nothing anywhere else.
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>

#include "absl/time/time.h"

namespace halfstep {

// Not thread-safe.
class ProgressBar {
 public:
  // `out` must outlive it.
  ProgressBar(std::ostream* out, bool terminal) : out_(*out), terminal_(terminal) {}
  // Clears.
  ~ProgressBar() { Clear(); }

  // "[####....] 12/40, 3s left", in place of what was drawn before.
  void Draw(int64_t done, int64_t total, std::optional<absl::Duration> left);
  // Makes room for a line.
  void Clear();

 private:
  std::ostream& out_;
  const bool terminal_;
  bool drawn_ = false;
};

}  // namespace halfstep
