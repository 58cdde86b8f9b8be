// SPDX-License-Identifier: Apache-2.0
// SvgPlot: a chart as an SVG element for an HTML page - title, legend, axes, and marks in between.
// It scales with its container; colours and fonts come from classes that ChartStyle defines, so
// that a page has a dark and a light look.
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

enum class KeyMark { kLine, kSwatch, kDot };

// One entry of the legend.
struct PlotKey {
  std::string name;
  size_t colour = 0;
  KeyMark mark = KeyMark::kLine;
  LineStyle style = LineStyle::kSolid;  // of a line
};

struct PlotAxis {
  Axis axis;
  std::string label = {};
  std::vector<std::string> tick_names = {};  // of each tick; empty: as TickLabel has it
};

// Sizes are in units of the view box, which are about pixels.
struct PlotOptions {
  std::string title;
  std::vector<PlotKey> keys = {};
  PlotAxis x;
  PlotAxis y;
  double width = 460;
  double height = 190;  // between the axes
  double left = 52;     // of the y axis, for its ticks and label
  bool grid = false;    // of the x axis too, in place of short ticks
};

struct PlotPoint {
  double x = 0;
  double y = 0;
};

enum class AreaFill { kOpaque, kBand };

// Values outside of the axes are drawn at their edge, on a logarithmic one also those that are not
// positive; points that are not finite are left out. What is added later is drawn on top. Not
// thread-safe.
class SvgPlot {
 public:
  explicit SvgPlot(PlotOptions options);

  void AddLine(const std::vector<PlotPoint>& points, size_t colour,
               LineStyle style = LineStyle::kSolid);
  void AddArea(const std::vector<PlotPoint>& upper, const std::vector<PlotPoint>& lower,
               size_t colour, AreaFill fill);
  // One with a tooltip is larger, for the pointer to meet.
  void AddDot(PlotPoint at, size_t colour, const std::string& tooltip = {});
  // Opacity in [0, 1].
  void AddRectangle(PlotPoint low, PlotPoint high, size_t colour, double opacity);

  // With a line of text under the chart, unless it is empty.
  std::string ToSvg(const std::string& note = {}) const;

 private:
  struct KeyPlace {
    double x = 0, y = 0;
  };

  void LayOutLegend();
  double X(double value) const;
  double Y(double value) const;
  // "x,y " of each.
  std::string Points(const std::vector<PlotPoint>& points) const;
  void AppendLegend(std::string* svg) const;
  void AppendAxes(std::string* svg) const;

  const PlotOptions options_;
  std::vector<KeyPlace> key_places_;
  double top_ = 0;  // of the marks
  std::string marks_;
};

}  // namespace halfstep
