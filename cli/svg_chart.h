// SPDX-License-Identifier: Apache-2.0
// Charts as SVG text that stands in an HTML page: no script, no network, no fonts of their own.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace halfstep {

struct ChartAxis {
  std::string label = "";
  double low = 0;
  double high = 1;   // above low; above 0 both, on a logarithmic axis
  bool log = false;  // decades
  // Where ticks stand and what they say; empty: chosen from the range.
  std::vector<std::pair<double, std::string>> ticks = {};
};

struct ChartOptions {
  std::string title;
  int width = 420;  // pixels
  int height = 300;
  ChartAxis x;
  ChartAxis y;
};

struct ChartPoint {
  double x = 0;
  double y = 0;
};

// Between two values at one place of the x axis.
struct ChartBandPoint {
  double x = 0;
  double low = 0;
  double high = 0;
};

// Colours that are told apart by most people with colour blindness (Okabe and Ito); repeats.
const char* ChartColor(size_t index);

// Values outside of the axes are drawn at their edge; those that are not finite are left out. What
// is added later is drawn on top. Not thread-safe.
class SvgChart {
 public:
  explicit SvgChart(ChartOptions options);

  void AddLine(const std::vector<ChartPoint>& points, const std::string& color);
  void AddDashedLine(const std::vector<ChartPoint>& points, const std::string& color);
  void AddBand(const std::vector<ChartBandPoint>& points, const std::string& color);
  // With a tooltip, which may be empty.
  void AddDot(ChartPoint at, const std::string& color, const std::string& tooltip);
  // Opacity in [0, 1].
  void AddRectangle(ChartPoint low, ChartPoint high, const std::string& color, double opacity);
  // A line in the legend, which stands below the chart and adds to its height.
  void AddLegend(const std::string& color, const std::string& name);

  std::string ToSvg() const;

 private:
  // Pixels.
  double X(double value) const;
  double Y(double value) const;
  void AddPolyline(const std::vector<ChartPoint>& points, const std::string& color,
                   const std::string& style);
  std::string Axes() const;

  const ChartOptions options_;
  std::string marks_;
  std::vector<std::pair<std::string, std::string>> legend_;  // colour, name
};

// Ticks of an axis without any of its own: multiples of 1, 2 or 5 times a power of ten, or decades.
std::vector<std::pair<double, std::string>> ChooseTicks(const ChartAxis& axis);

}  // namespace halfstep
