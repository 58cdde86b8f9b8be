// SPDX-License-Identifier: Apache-2.0
// Curves of few enough points to be drawn, and the ticks of their axes.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "cli/runs/run_record.h"

namespace halfstep {

// Some neighbouring values: their mean between the least and the largest. All NaN where none of
// them is finite: a gap in the curve.
struct CurvePoint {
  double x = 0;  // mean step
  double low = 0;
  double mean = 0;
  double high = 0;
};

// At most `most` points (at least 1), each of equally many neighbours, the last perhaps of fewer.
// Up to `most` values stay single. Values that are not finite are left out of their neighbours'.
std::vector<CurvePoint> Bucketed(const std::vector<MetricPoint>& values, size_t most);

enum class AxisScale { kLinear, kLog10, kLog2 };

// An axis from its first to its last tick, which enclose the values.
struct Axis {
  AxisScale scale = AxisScale::kLinear;
  std::vector<double> ticks;  // ascending, at least two

  // 0 at the first tick, 1 at the last. Logarithmic ones need a positive value.
  double Position(double value) const;
};

// An axis for values between `low` and `high` (finite, low <= high; positive for logarithmic ones)
// of about `ticks` ticks: 1, 2 or 5 times a power of ten; powers of the base.
Axis MakeAxis(AxisScale scale, double low, double high, int ticks);

// "0.05", "1500", "20k", "3e-05", and 2^16 on an axis of powers of two.
std::string TickLabel(AxisScale scale, double value);

}  // namespace halfstep
