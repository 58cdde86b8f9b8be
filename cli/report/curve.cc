// SPDX-License-Identifier: Apache-2.0
#include "cli/report/curve.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace halfstep {
namespace {

CurvePoint Combine(const MetricPoint* begin, size_t count) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  CurvePoint point{0, kNone, kNone, kNone};
  double sum = 0;
  size_t finite = 0;
  for (const MetricPoint* value = begin; value != begin + count; ++value) {
    point.x += static_cast<double>(value->step) / static_cast<double>(count);
    if (!std::isfinite(value->value)) continue;
    sum += value->value;
    point.low = finite == 0 ? value->value : std::min(point.low, value->value);
    point.high = finite == 0 ? value->value : std::max(point.high, value->value);
    ++finite;
  }
  // Rounding must not put the mean of equal values beside them.
  if (finite > 0) point.mean = std::clamp(sum / static_cast<double>(finite), point.low, point.high);
  return point;
}

// The least of 1, 2, 5 and 10 times a power of ten that is not below `least`.
double NiceStep(double least) {
  const double decade = std::pow(10, std::floor(std::log10(least)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * decade >= least * (1 - 1e-9)) return factor * decade;
  }
  return 10 * decade;
}

std::vector<double> LinearTicks(double low, double high, int ticks) {
  // What is constant, but for rounding, is shown against zero.
  if (high - low <= std::max(1e-9 * std::max(std::abs(low), std::abs(high)), 1e-300)) {
    low = std::min(low, 0.0);
    high = std::max(high, 0.0);
    if (high - low < 1e-300) high = 1;
  }
  const double step = NiceStep(high / ticks - low / ticks);
  const double first = std::floor(low / step * (1 - 1e-12));
  const double last = std::ceil(high / step * (1 - 1e-12));
  std::vector<double> at;
  for (double i = first; i <= last; ++i) at.push_back(i * step);
  if (at.size() < 2) at.push_back((first + 1) * step);
  return at;
}

std::vector<double> LogTicks(double base, double low, double high, int ticks) {
  const auto exponent = [base](double value) { return std::log2(value) / std::log2(base); };
  const double first = std::floor(exponent(low) + 1e-9);
  const double last = std::max(std::ceil(exponent(high) - 1e-9), first + 1);
  const double step = std::max(1.0, std::ceil((last - first) / ticks));
  std::vector<double> at;
  for (double i = first; i < last + step; i += step) at.push_back(std::pow(base, i));
  return at;
}

}  // namespace

std::vector<CurvePoint> Bucketed(const std::vector<MetricPoint>& values, size_t most) {
  const size_t width = (values.size() + most - 1) / most;
  std::vector<CurvePoint> points;
  for (size_t begin = 0; begin < values.size(); begin += width) {
    points.push_back(Combine(values.data() + begin, std::min(width, values.size() - begin)));
  }
  return points;
}

double Axis::Position(double value) const {
  const double first = ticks.front(), last = ticks.back();
  if (scale == AxisScale::kLinear) return (value - first) / (last - first);
  return std::log2(value / first) / std::log2(last / first);
}

Axis MakeAxis(AxisScale scale, double low, double high, int ticks) {
  // Far enough from the ends of the number range for the arithmetic of ticks.
  low = std::clamp(low, -1e300, 1e300);
  high = std::clamp(high, -1e300, 1e300);
  if (scale != AxisScale::kLinear) low = std::max(low, 1e-300);
  switch (scale) {
    case AxisScale::kLog10:
      return {scale, LogTicks(10, low, high, ticks)};
    case AxisScale::kLog2:
      return {scale, LogTicks(2, low, high, ticks)};
    default:
      return {scale, LinearTicks(low, high, ticks)};
  }
}

std::string TickLabel(AxisScale scale, double value) {
  if (scale == AxisScale::kLog2) return absl::StrFormat("2^%.0f", std::log2(value));
  if (std::abs(value) >= 1e4 && std::abs(value) < 1e9) {
    const bool millions = std::abs(value) >= 1e6;
    return absl::StrFormat("%.6g%s", value / (millions ? 1e6 : 1e3), millions ? "M" : "k");
  }
  return absl::StrFormat("%.6g", value);
}

}  // namespace halfstep
