// SPDX-License-Identifier: Apache-2.0
#include "cli/report/svg_chart.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/report/html_text.h"

namespace halfstep {
namespace {

// In the units of the view box, which are about pixels.
constexpr double kWidth = 460;
constexpr double kPlotHeight = 190;
constexpr double kLeft = 52;
constexpr double kRight = 22;
constexpr double kTitleHeight = 24;
constexpr double kLegendRow = 17;
constexpr double kBelow = 34;
constexpr double kCharacter = 6.8;  // mean width of the legend's font
constexpr double kKeyWidth = 30;    // the legend's piece of line and the space around it

struct Range {
  double low = 0, high = 0;
};

void Widen(double value, std::optional<Range>* range) {
  if (!range->has_value()) *range = Range{value, value};
  (*range)->low = std::min((*range)->low, value);
  (*range)->high = std::max((*range)->high, value);
}

std::string DashOf(LineStyle style) {
  if (style == LineStyle::kDashed) return " stroke-dasharray=\"6 4\"";
  return style == LineStyle::kDotted ? " stroke-dasharray=\"2 3\"" : "";
}

std::string Text(double x, double y, const std::string& anchor, const std::string& text) {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor,
                         EscapeHtml(text));
}

// The frame of a chart: where values lie, and everything but the curves.
class Plot {
 public:
  Plot(const std::string& title, const std::vector<Curve>& curves, Axis x, Axis y)
      : title_(title), curves_(curves), x_(std::move(x)), y_(std::move(y)) {
    LayOutLegend();
  }

  double X(double value) const { return kLeft + (kWidth - kLeft - kRight) * x_.Position(value); }
  double Y(double value) const {
    return top_ + kPlotHeight * (1 - std::clamp(y_.Position(value), 0.0, 1.0));
  }
  double floor() const { return y_.ticks.front(); }
  std::string Point(double x, double y) const { return absl::StrFormat("%.1f,%.1f ", X(x), Y(y)); }

  std::string Draw(const std::string& curves, const std::string& note, bool swatches) const {
    const double height = top_ + kPlotHeight + kBelow + (note.empty() ? 0 : kLegendRow);
    std::string svg = absl::StrFormat(
        "<svg class=\"chart\" viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"%s\">\n", kWidth,
        height, EscapeHtml(title_));
    absl::StrAppend(&svg, "<text class=\"title\" x=\"4\" y=\"15\">", EscapeHtml(title_),
                    "</text>\n");
    AppendLegend(swatches, &svg);
    AppendTicks(&svg);
    absl::StrAppend(&svg, curves);
    if (!note.empty()) absl::StrAppend(&svg, Text(kWidth - kRight, height - 5, "end", note));
    absl::StrAppend(&svg, "</svg>\n");
    return svg;
  }

 private:
  struct Key {
    double x = 0, y = 0;
  };

  void LayOutLegend() {
    double x = kLeft, y = kTitleHeight + 8;
    for (const Curve& curve : curves_) {
      const double width = kKeyWidth + kCharacter * static_cast<double>(curve.name.size());
      if (x > kLeft && x + width > kWidth) {
        x = kLeft;
        y += kLegendRow;
      }
      keys_.push_back({x, y});
      x += width + 8;
    }
    top_ = y + kLegendRow;
  }

  void AppendLegend(bool swatches, std::string* svg) const {
    for (size_t i = 0; i < curves_.size(); ++i) {
      const Curve& curve = curves_[i];
      const Key& key = keys_[i];
      const size_t colour = curve.colour % kChartColours;
      if (swatches) {
        absl::StrAppendFormat(svg,
                              "<rect class=\"f%d\" x=\"%.1f\" y=\"%.1f\" width=\"20\" "
                              "height=\"9\"/>\n",
                              colour, key.x, key.y - 5);
      } else {
        absl::StrAppendFormat(svg,
                              "<line class=\"l%d\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" "
                              "y2=\"%.1f\"%s/>\n",
                              colour, key.x, key.x + 20, key.y, key.y, DashOf(curve.style));
      }
      absl::StrAppend(svg, Text(key.x + 25, key.y + 4, "start", curve.name));
    }
  }

  void AppendTicks(std::string* svg) const {
    const double bottom = top_ + kPlotHeight;
    for (const double tick : y_.ticks) {
      absl::StrAppendFormat(svg,
                            "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" "
                            "y2=\"%.1f\"/>\n",
                            kLeft, kWidth - kRight, Y(tick), Y(tick));
      absl::StrAppend(svg, Text(kLeft - 6, Y(tick) + 4, "end", TickLabel(y_.scale, tick)));
    }
    for (const double tick : x_.ticks) {
      absl::StrAppendFormat(
          svg, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n", X(tick),
          X(tick), bottom, bottom + 4);
      absl::StrAppend(svg, Text(X(tick), bottom + 17, "middle", TickLabel(x_.scale, tick)));
    }
    absl::StrAppend(svg, Text(kWidth - kRight, bottom + 30, "end", "step"));
  }

  const std::string& title_;
  const std::vector<Curve>& curves_;
  Axis x_, y_;
  std::vector<Key> keys_;
  double top_ = 0;
};

// Steps are whole.
Axis StepAxis(const Range& steps) {
  Axis axis = MakeAxis(AxisScale::kLinear, steps.low, std::max(steps.high, steps.low + 5), 6);
  // Steps before the first would be empty space.
  axis.ticks.front() = std::max(axis.ticks.front(), std::min(steps.low, 0.0));
  return axis;
}

// One piece of a curve that has no gap.
void AppendSegment(const Plot& plot, const Curve& curve, size_t begin, size_t end,
                   std::string* svg) {
  const std::vector<CurvePoint>& points = curve.points;
  const size_t colour = curve.colour % kChartColours;
  std::string line, above, below;
  bool band = false;
  for (size_t i = begin; i < end; ++i) {
    const CurvePoint& point = points[i];
    absl::StrAppend(&line, plot.Point(point.x, point.mean));
    absl::StrAppend(&above, plot.Point(point.x, point.high));
    below = absl::StrCat(plot.Point(point.x, std::max(point.low, plot.floor())), below);
    band |= point.low != point.high;
  }
  if (band && end - begin > 1) {
    absl::StrAppendFormat(svg, "<polygon class=\"b%d\" points=\"%s%s\"/>\n", colour, above, below);
  }
  if (end - begin > 1) {
    absl::StrAppendFormat(svg, "<polyline class=\"l%d\" points=\"%s\"%s/>\n", colour, line,
                          DashOf(curve.style));
  }
  for (size_t i = begin; i < end && (curve.markers || end - begin == 1); ++i) {
    absl::StrAppendFormat(svg, "<circle class=\"f%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\"/>\n",
                          colour, plot.X(points[i].x), plot.Y(points[i].mean));
  }
}

}  // namespace

std::string ChartStyle() {
  std::string css =
      ".chart{width:100%;height:auto;display:block}\n"
      ".chart text{fill:var(--ink);font:12px system-ui,sans-serif}\n"
      ".chart .title{font-weight:600;font-size:14px}\n"
      ".chart .grid{stroke:var(--faint);stroke-width:1}\n";
  for (size_t i = 0; i < kChartColours; ++i) {
    absl::StrAppendFormat(&css,
                          ".chart .l%d{stroke:var(--c%d);stroke-width:1.6;fill:none}\n"
                          ".chart .f%d{fill:var(--c%d)}\n"
                          ".chart .b%d{fill:var(--c%d);fill-opacity:.18}\n",
                          i, i, i, i, i, i);
  }
  return css;
}

std::string ChartColours() {
  return ":root{--ink:#1c2024;--faint:#dfe3e7;--c0:#2066a8;--c1:#c8472b;--c2:#2a8a57;--c3:#8a5bb5;"
         "\n"
         "--c4:#b8860b;--c5:#138a9c;--c6:#b5407f;--c7:#6b6f76}\n"
         "@media (prefers-color-scheme:dark){:root{--ink:#e4e7ea;--faint:#31373d;--c0:#69a8e6;\n"
         "--c1:#f0846b;--c2:#62c08f;--c3:#b996e0;--c4:#e0b64a;--c5:#52c3d4;--c6:#e583b6;\n"
         "--c7:#a5abb3}}\n";
}

std::string StandaloneSvg(const std::string& chart) {
  const size_t attributes = std::string("<svg").size();
  const size_t content = chart.find('\n') + 1;
  return absl::StrCat("<svg xmlns=\"http://www.w3.org/2000/svg\"",
                      chart.substr(attributes, content - attributes), "<style>\n", ChartColours(),
                      ChartStyle(), "</style>\n", chart.substr(content));
}

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
  const Plot plot(
      chart.title, chart.curves, StepAxis(*steps),
      MakeAxis(logarithmic ? chart.scale : AxisScale::kLinear, range.low, range.high, 5));
  std::string curves;
  for (const Curve& curve : chart.curves) {
    const auto drawn = [&](const CurvePoint& point) {
      return std::isfinite(point.mean) && (!logarithmic || point.mean > 0);
    };
    for (size_t begin = 0; begin < curve.points.size(); ++begin) {
      size_t end = begin;
      while (end < curve.points.size() && drawn(curve.points[end])) ++end;
      if (end == begin) continue;
      AppendSegment(plot, curve, begin, end, &curves);
      begin = end;
    }
  }
  std::vector<std::string> notes;
  if (logarithmic && unplaced > 0) {
    notes.push_back(absl::StrCat("points of 0 or less, not shown: ", unplaced));
  }
  if (without_value > 0) notes.push_back(absl::StrCat("points not finite: ", without_value));
  return plot.Draw(curves, absl::StrJoin(notes, "; "), /*swatches=*/false);
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
  const Plot plot(chart.title, chart.layers, StepAxis({first.front().x, first.back().x}),
                  MakeAxis(AxisScale::kLinear, 0, highest, 5));
  std::string areas;
  for (size_t layer = 0; layer < chart.layers.size(); ++layer) {
    std::string outline;
    for (size_t i = 0; i < first.size(); ++i) {
      absl::StrAppend(&outline, plot.Point(first[i].x, tops[layer + 1][i]));
    }
    for (size_t i = first.size(); i-- > 0;) {
      absl::StrAppend(&outline, plot.Point(first[i].x, tops[layer][i]));
    }
    absl::StrAppendFormat(&areas, "<polygon class=\"f%d\" points=\"%s\"/>\n",
                          chart.layers[layer].colour % kChartColours, outline);
  }
  return plot.Draw(areas, "", /*swatches=*/true);
}

}  // namespace halfstep
