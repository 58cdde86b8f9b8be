// SPDX-License-Identifier: Apache-2.0
// Progress of a study: a bar on a terminal, a line for each stage elsewhere.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/progress_bar.h"

namespace halfstep {

// Not thread-safe.
class StageProgress {
 public:
  // `context` must outlive it.
  explicit StageProgress(CommandContext* context);

  // Whether to go on: false once the command was asked to end.
  bool Tell(const std::string& stage, int64_t done, int64_t total);

 private:
  CommandContext& context_;
  const bool terminal_;
  ProgressBar bar_;
  const absl::Time start_ = absl::Now();
  std::string stage_;
};

}  // namespace halfstep
