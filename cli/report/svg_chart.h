// SPDX-License-Identifier: Apache-2.0
// Charts of curves over steps, drawn with SvgPlot. Pure functions.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "cli/report/curve.h"
#include "cli/report/svg_plot.h"

namespace halfstep {

struct Curve {
  std::string name;  // for the legend
  size_t colour = 0;
  LineStyle style = LineStyle::kSolid;
  bool markers = false;  // a dot at each point, for those that are few
  std::vector<CurvePoint> points;
};

struct LineChart {
  std::string title;
  AxisScale scale = AxisScale::kLinear;  // of the values; steps are linear
  std::vector<Curve> curves;
};

// A line through the means, and a band from low to high where a point stands for several values.
// Points without a finite value break it, and on a logarithmic axis those that are not positive; a
// note under the chart counts them. When no value is positive the axis is linear. "" when there is
// nothing to draw.
std::string LineChartSvg(const LineChart& chart);

// Layers on top of each other, the first at the bottom. All have the x of the first layer's points;
// their means are drawn, and what is not finite counts as 0.
struct StackedChart {
  std::string title;
  std::vector<Curve> layers;
};

// "" when there is nothing to draw.
std::string StackedChartSvg(const StackedChart& chart);

}  // namespace halfstep
