// SPDX-License-Identifier: Apache-2.0
// Learning rate as a function of applied optimizer steps.
#pragma once

#include <cstdint>

namespace halfstep {

enum class LrScheduleKind { kConstant, kLinear, kCosine };

struct LrSchedule {
  LrScheduleKind kind = LrScheduleKind::kConstant;
  double peak = 0;
  int64_t warmup_steps = 0;  // linear, reaching the peak at the last of them
  int64_t total_steps = 1;   // linear and cosine reach zero after this many

  // Of the optimizer step that follows `applied` applied ones. Skipped steps do not count.
  double At(int64_t applied) const;
};

}  // namespace halfstep
