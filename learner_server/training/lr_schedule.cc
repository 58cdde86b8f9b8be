// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace halfstep {

double LrSchedule::At(int64_t applied) const {
  if (applied < warmup_steps) {
    return peak * static_cast<double>(applied + 1) / static_cast<double>(warmup_steps);
  }
  const double decay_steps = static_cast<double>(std::max<int64_t>(1, total_steps - warmup_steps));
  const double progress = std::min(1.0, static_cast<double>(applied - warmup_steps) / decay_steps);
  switch (kind) {
    case LrScheduleKind::kConstant:
      return peak;
    case LrScheduleKind::kLinear:
      return peak * (1 - progress);
    case LrScheduleKind::kCosine:
      return peak * 0.5 * (1 + std::cos(std::numbers::pi * progress));
  }
  return peak;
}

}  // namespace halfstep
