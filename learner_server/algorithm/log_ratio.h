// SPDX-License-Identifier: Apache-2.0
// The bound of every log-ratio whose exponential is taken.
#pragma once

#include <algorithm>

namespace halfstep {

// Log-ratios beyond this are clamped, and have no gradient: e^20 is 5e8, verl's bound too.
inline constexpr double kLogRatioLimit = 20;

inline double ClampLogRatio(double log_ratio) {
  return std::clamp(log_ratio, -kLogRatioLimit, kLogRatioLimit);
}

}  // namespace halfstep
