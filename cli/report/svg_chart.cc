// SPDX-License-Identifier: Apache-2.0
#include "cli/report/svg_chart.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace halfstep {
namespace {

struct Range {
  double low = 0, high = 0;
};

void Widen(double value, std::optional<Range>* range) {
  if (!range->has_value()) *range = Range{value, value};
  (*range)->low = std::min((*range)->low, value);
  (*range)->high = std::max((*range)->high, value);
}

// Steps are whole.
Axis StepAxis(const Range& steps) {
  Axis axis = MakeAxis(AxisScale::kLinear, steps.low, std::max(steps.high, steps.low + 5), 6);
  // Steps before the first would be empty space.
  axis.ticks.front() = std::max(axis.ticks.front(), std::min(steps.low, 0.0));
  return axis;
}

PlotOptions StepPlot(const std::string& title, const Range& steps, Axis y) {
  return {
      .title = title, .x = {.axis = StepAxis(steps), .label = "step"}, .y = {.axis = std::move(y)}};
}

// One piece of a curve that has no gap.
void AddSegment(const Curve& curve, size_t begin, size_t end, SvgPlot* plot) {
  std::vector<PlotPoint> line, above, below;
  bool band = false;
  for (size_t i = begin; i < end; ++i) {
    const CurvePoint& point = curve.points[i];
    line.push_back({point.x, point.mean});
    above.push_back({point.x, point.high});
    below.push_back({point.x, point.low});
    band |= point.low != point.high;
  }
  const bool single = line.size() == 1;
  if (band && !single) plot->AddArea(above, below, curve.colour, AreaFill::kBand);
  if (!single) plot->AddLine(line, curve.colour, curve.style);
  if (!curve.markers && !single) return;
  for (const PlotPoint& point : line) plot->AddDot(point, curve.colour);
}

}  // namespace

std::string LineChartSvg(const LineChart& chart) {
  std::optional<Range> steps, all, positive;
  int64_t unplaced = 0, without_value = 0;
  for (const Curve& curve : chart.curves) {
    for (const CurvePoint& point : curve.points) {
      if (!std::isfinite(point.mean)) {
        ++without_value;
        continue;
      }
      Widen(point.x, &steps);
      for (const double value : {point.low, point.mean, point.high}) {
        Widen(value, &all);
        if (value > 0) Widen(value, &positive);
      }
      unplaced += point.mean <= 0;
    }
  }
  if (!steps) return "";
  const bool logarithmic = chart.scale != AxisScale::kLinear && positive.has_value();
  const Range& range = logarithmic ? *positive : *all;
  PlotOptions options =
      StepPlot(chart.title, *steps,
               MakeAxis(logarithmic ? chart.scale : AxisScale::kLinear, range.low, range.high, 5));
  for (const Curve& curve : chart.curves) {
    options.keys.push_back({curve.name, curve.colour, KeyMark::kLine, curve.style});
  }
  SvgPlot plot(std::move(options));
  for (const Curve& curve : chart.curves) {
    const auto drawn = [&](const CurvePoint& point) {
      return std::isfinite(point.mean) && (!logarithmic || point.mean > 0);
    };
    for (size_t begin = 0; begin < curve.points.size(); ++begin) {
      size_t end = begin;
      while (end < curve.points.size() && drawn(curve.points[end])) ++end;
      if (end == begin) continue;
      AddSegment(curve, begin, end, &plot);
      begin = end;
    }
  }
  std::vector<std::string> notes;
  if (logarithmic && unplaced > 0) {
    notes.push_back(absl::StrCat("points of 0 or less, not shown: ", unplaced));
  }
  if (without_value > 0) notes.push_back(absl::StrCat("points not finite: ", without_value));
  return plot.ToSvg(absl::StrJoin(notes, "; "));
}

std::string StackedChartSvg(const StackedChart& chart) {
  if (chart.layers.empty() || chart.layers.front().points.empty()) return "";
  const std::vector<CurvePoint>& first = chart.layers.front().points;
  std::vector<std::vector<double>> tops = {std::vector<double>(first.size(), 0.0)};
  for (const Curve& layer : chart.layers) {
    std::vector<double> top = tops.back();
    for (size_t i = 0; i < top.size() && i < layer.points.size(); ++i) {
      if (std::isfinite(layer.points[i].mean)) top[i] += layer.points[i].mean;
    }
    tops.push_back(std::move(top));
  }
  const double highest = *std::max_element(tops.back().begin(), tops.back().end());
  PlotOptions options = StepPlot(chart.title, {first.front().x, first.back().x},
                                 MakeAxis(AxisScale::kLinear, 0, highest, 5));
  for (const Curve& layer : chart.layers) {
    options.keys.push_back({layer.name, layer.colour, KeyMark::kSwatch, LineStyle::kSolid});
  }
  SvgPlot plot(std::move(options));
  const auto edge = [&first](const std::vector<double>& heights) {
    std::vector<PlotPoint> points;
    for (size_t i = 0; i < first.size(); ++i) points.push_back({first[i].x, heights[i]});
    return points;
  };
  for (size_t layer = 0; layer < chart.layers.size(); ++layer) {
    plot.AddArea(edge(tops[layer + 1]), edge(tops[layer]), chart.layers[layer].colour,
                 AreaFill::kOpaque);
  }
  return plot.ToSvg();
}

}  // namespace halfstep
