// SPDX-License-Identifier: Apache-2.0
// Charts as SVG elements for an HTML page, with legend and ticks. They scale with their container;
// colours and fonts come from classes that ChartStyle defines, so that a page has a dark and a
// light look. Pure functions.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "cli/report/curve.h"

namespace halfstep {

// Colours repeat after these.
inline constexpr size_t kChartColours = 8;

// CSS for every chart of a page: the variables --ink, --faint and --c0 to --c7 are the page's, such
// as those of ChartColours.
std::string ChartStyle();

// CSS that defines these variables, for a light and a dark background.
std::string ChartColours();

// A chart as a file of its own: with its namespace, colours and style.
std::string StandaloneSvg(const std::string& chart);

enum class LineStyle { kSolid, kDashed, kDotted };

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
