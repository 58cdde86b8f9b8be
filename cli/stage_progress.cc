// SPDX-License-Identifier: Apache-2.0
#include "cli/stage_progress.h"

#include <unistd.h>

#include <optional>

#include "common/base/shutdown_signal.h"

namespace halfstep {

StageProgress::StageProgress(CommandContext* context)
    : context_(*context), terminal_(isatty(STDERR_FILENO) == 1), bar_(&context->err, terminal_) {}

bool StageProgress::Tell(const std::string& stage, int64_t done, int64_t total) {
  std::optional<absl::Duration> left;
  if (done > 0) left = (absl::Now() - start_) * static_cast<double>(total - done) / done;
  bar_.Draw(done, total, left);
  if (!terminal_ && stage != stage_) context_.err << stage << std::endl;
  stage_ = stage;
  return !context_.signal->requested();
}

}  // namespace halfstep
