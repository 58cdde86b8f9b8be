// SPDX-License-Identifier: Apache-2.0
#include "cli/report/svg_plot.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/report/html_text.h"
#include "kernels/check.h"

namespace halfstep {
namespace {

constexpr double kRight = 22;
constexpr double kTitleHeight = 24;
constexpr double kLegendRow = 17;
constexpr double kBelow = 34;
constexpr double kCharacter = 6.8;  // mean width of the legend's font
constexpr double kKeyWidth = 30;    // the legend's piece of line and the space around it

std::string DashOf(LineStyle style) {
  if (style == LineStyle::kDashed) return " stroke-dasharray=\"6 4\"";
  return style == LineStyle::kDotted ? " stroke-dasharray=\"2 3\"" : "";
}

std::string Text(double x, double y, const std::string& anchor, const std::string& text) {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor,
                         EscapeHtml(text));
}

std::string GridLine(PlotPoint from, PlotPoint to) {
  return absl::StrFormat("<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
                         from.x, to.x, from.y, to.y);
}

// Where a value lies between the axis' ends, 0 to 1.
double Place(const Axis& axis, double value) {
  if (axis.scale != AxisScale::kLinear && value <= 0) return 0;
  return std::clamp(axis.Position(value), 0.0, 1.0);
}

bool Finite(const PlotPoint& point) { return std::isfinite(point.x) && std::isfinite(point.y); }

std::string TickName(const PlotAxis& axis, size_t tick) {
  return axis.tick_names.empty() ? TickLabel(axis.axis.scale, axis.axis.ticks[tick])
                                 : axis.tick_names[tick];
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

SvgPlot::SvgPlot(PlotOptions options) : options_(std::move(options)) {
  for (const PlotAxis* axis : {&options_.x, &options_.y}) {
    HALFSTEP_CHECK_GE(axis->axis.ticks.size(), 2u);
    HALFSTEP_CHECK(axis->tick_names.empty() || axis->tick_names.size() == axis->axis.ticks.size());
  }
  LayOutLegend();
}

double SvgPlot::X(double value) const {
  return options_.left + (options_.width - options_.left - kRight) * Place(options_.x.axis, value);
}

double SvgPlot::Y(double value) const {
  return top_ + options_.height * (1 - Place(options_.y.axis, value));
}

std::string SvgPlot::Points(const std::vector<PlotPoint>& points) const {
  std::string text;
  for (const PlotPoint& point : points) {
    if (Finite(point)) absl::StrAppendFormat(&text, "%.1f,%.1f ", X(point.x), Y(point.y));
  }
  return text;
}

void SvgPlot::AddLine(const std::vector<PlotPoint>& points, size_t colour, LineStyle style) {
  absl::StrAppendFormat(&marks_, "<polyline class=\"l%d\" points=\"%s\"%s/>\n",
                        colour % kChartColours, Points(points), DashOf(style));
}

void SvgPlot::AddArea(const std::vector<PlotPoint>& upper, const std::vector<PlotPoint>& lower,
                      size_t colour, AreaFill fill) {
  const std::vector<PlotPoint> back(lower.rbegin(), lower.rend());
  absl::StrAppendFormat(&marks_, "<polygon class=\"%s%d\" points=\"%s%s\"/>\n",
                        fill == AreaFill::kBand ? "b" : "f", colour % kChartColours, Points(upper),
                        Points(back));
}

void SvgPlot::AddDot(PlotPoint at, size_t colour, const std::string& tooltip) {
  if (!Finite(at)) return;
  absl::StrAppendFormat(&marks_, "<circle class=\"f%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"%s\"",
                        colour % kChartColours, X(at.x), Y(at.y), tooltip.empty() ? "2.5" : "3.5");
  absl::StrAppend(
      &marks_,
      tooltip.empty() ? "/>" : absl::StrCat("><title>", EscapeHtml(tooltip), "</title></circle>"),
      "\n");
}

void SvgPlot::AddRectangle(PlotPoint low, PlotPoint high, size_t colour, double opacity) {
  if (!Finite(low) || !Finite(high)) return;
  absl::StrAppendFormat(&marks_,
                        "<rect class=\"f%d\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" "
                        "height=\"%.1f\" fill-opacity=\"%.3f\"/>\n",
                        colour % kChartColours, X(low.x), Y(high.y), X(high.x) - X(low.x),
                        Y(low.y) - Y(high.y), opacity);
}

std::string SvgPlot::ToSvg(const std::string& note) const {
  const double right = options_.width - kRight;
  const double height = top_ + options_.height + kBelow + (note.empty() ? 0 : kLegendRow);
  const std::string title = EscapeHtml(options_.title);
  std::string svg = absl::StrFormat(
      "<svg class=\"chart\" viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"%s\">\n",
      options_.width, height, title);
  absl::StrAppend(&svg, "<text class=\"title\" x=\"4\" y=\"15\">", title, "</text>\n");
  AppendLegend(&svg);
  AppendAxes(&svg);
  absl::StrAppend(&svg, marks_);
  if (!note.empty()) absl::StrAppend(&svg, Text(right, height - 5, "end", note));
  absl::StrAppend(&svg, "</svg>\n");
  return svg;
}

void SvgPlot::LayOutLegend() {
  top_ = kTitleHeight + 8;
  if (options_.keys.empty()) return;
  double x = options_.left, y = top_;
  for (const PlotKey& key : options_.keys) {
    const double width = kKeyWidth + kCharacter * static_cast<double>(key.name.size());
    if (x > options_.left && x + width > options_.width) {
      x = options_.left;
      y += kLegendRow;
    }
    key_places_.push_back({x, y});
    x += width + 8;
  }
  top_ = y + kLegendRow;
}

void SvgPlot::AppendLegend(std::string* svg) const {
  for (size_t i = 0; i < options_.keys.size(); ++i) {
    const PlotKey& key = options_.keys[i];
    const auto [x, y] = key_places_[i];
    const size_t colour = key.colour % kChartColours;
    switch (key.mark) {
      case KeyMark::kLine:
        absl::StrAppendFormat(svg,
                              "<line class=\"l%d\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" "
                              "y2=\"%.1f\"%s/>\n",
                              colour, x, x + 20, y, y, DashOf(key.style));
        break;
      case KeyMark::kSwatch:
        absl::StrAppendFormat(svg,
                              "<rect class=\"f%d\" x=\"%.1f\" y=\"%.1f\" width=\"20\" "
                              "height=\"9\"/>\n",
                              colour, x, y - 5);
        break;
      case KeyMark::kDot:
        absl::StrAppendFormat(svg, "<circle class=\"f%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"/>\n",
                              colour, x + 16, y);
        break;
    }
    absl::StrAppend(svg, Text(x + 25, y + 4, "start", key.name));
  }
}

void SvgPlot::AppendAxes(std::string* svg) const {
  const double left = options_.left, right = options_.width - kRight;
  const double bottom = top_ + options_.height;
  const std::vector<double>& rows = options_.y.axis.ticks;
  for (size_t i = 0; i < rows.size(); ++i) {
    const double y = Y(rows[i]);
    absl::StrAppend(svg, GridLine({left, y}, {right, y}),
                    Text(left - 6, y + 4, "end", TickName(options_.y, i)));
  }
  const std::vector<double>& columns = options_.x.axis.ticks;
  for (size_t i = 0; i < columns.size(); ++i) {
    const double x = X(columns[i]);
    absl::StrAppend(svg, GridLine({x, options_.grid ? top_ : bottom}, {x, bottom + 4}),
                    Text(x, bottom + 17, "middle", TickName(options_.x, i)));
  }
  absl::StrAppend(svg, Text(right, bottom + 30, "end", options_.x.label));
  if (options_.y.label.empty()) return;
  absl::StrAppendFormat(
      svg, "<text transform=\"translate(13 %.1f) rotate(-90)\" text-anchor=\"middle\">%s</text>\n",
      (top_ + bottom) / 2, EscapeHtml(options_.y.label));
}

}  // namespace halfstep
