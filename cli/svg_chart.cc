// SPDX-License-Identifier: Apache-2.0
#include "cli/svg_chart.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/report/html_text.h"
#include "kernels/check.h"

namespace halfstep {
namespace {

constexpr int kLeft = 80;  // of the plot, in pixels: ticks and the label of the y axis
constexpr int kRight = 14;
constexpr int kTop = 28;  // the title
constexpr int kBottom = 44;
constexpr int kLegendLine = 16;
constexpr int kMostTicks = 7;

// Where a value lies between the axis' ends, 0 to 1.
double Place(const ChartAxis& axis, double value) {
  const double bounded = std::clamp(value, axis.low, axis.high);
  if (!axis.log) return (bounded - axis.low) / (axis.high - axis.low);
  return std::log(bounded / axis.low) / std::log(axis.high / axis.low);
}

bool Finite(const ChartPoint& point) { return std::isfinite(point.x) && std::isfinite(point.y); }

}  // namespace

const char* ChartColor(size_t index) {
  constexpr const char* kColors[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                     "#e69f00", "#56b4e9", "#5a5a5a"};
  return kColors[index % std::size(kColors)];
}

std::vector<std::pair<double, std::string>> ChooseTicks(const ChartAxis& axis) {
  std::vector<std::pair<double, std::string>> ticks;
  if (axis.log) {
    // A little slack, since log10 of a power of ten may be off by a rounding.
    const int low = static_cast<int>(std::ceil(std::log10(axis.low) - 1e-9));
    const int high = static_cast<int>(std::floor(std::log10(axis.high) + 1e-9));
    const int step = std::max(0, high - low - 1) / kMostTicks + 1;
    for (int decade = low; decade <= high; decade += step) {
      ticks.emplace_back(std::pow(10.0, decade), absl::StrFormat("1e%d", decade));
    }
    return ticks;
  }
  const double rough = (axis.high - axis.low) / kMostTicks;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double nice : {5.0, 2.0, 1.0}) {
    if (nice * power >= rough) step = nice * power;
  }
  const double slack = 1e-9 * step;
  for (double i = std::ceil((axis.low - slack) / step); i * step <= axis.high + slack; ++i) {
    // -0 is 0 to readers.
    ticks.emplace_back(i * step, absl::StrFormat("%.6g", i == 0 ? 0.0 : i * step));
  }
  return ticks;
}

SvgChart::SvgChart(ChartOptions options) : options_(std::move(options)) {
  for (const ChartAxis* axis : {&options_.x, &options_.y}) {
    HALFSTEP_CHECK_LT(axis->low, axis->high);
    HALFSTEP_CHECK(!axis->log || axis->low > 0);
  }
}

double SvgChart::X(double value) const {
  return kLeft + Place(options_.x, value) * (options_.width - kLeft - kRight);
}

double SvgChart::Y(double value) const {
  return options_.height - kBottom - Place(options_.y, value) * (options_.height - kTop - kBottom);
}

void SvgChart::AddPolyline(const std::vector<ChartPoint>& points, const std::string& color,
                           const std::string& style) {
  absl::StrAppend(&marks_, "<polyline fill=\"none\" stroke=\"", color, "\" ", style, " points=\"");
  for (const ChartPoint& point : points) {
    if (Finite(point)) absl::StrAppendFormat(&marks_, "%.2f,%.2f ", X(point.x), Y(point.y));
  }
  absl::StrAppend(&marks_, "\"/>\n");
}

void SvgChart::AddLine(const std::vector<ChartPoint>& points, const std::string& color) {
  AddPolyline(points, color, "stroke-width=\"1.6\"");
}

void SvgChart::AddDashedLine(const std::vector<ChartPoint>& points, const std::string& color) {
  AddPolyline(points, color, "stroke-width=\"1\" stroke-dasharray=\"4 3\"");
}

void SvgChart::AddBand(const std::vector<ChartBandPoint>& points, const std::string& color) {
  absl::StrAppend(&marks_, "<polygon stroke=\"none\" fill-opacity=\"0.22\" fill=\"", color,
                  "\" points=\"");
  const auto add = [this](double x, double y) {
    if (Finite({x, y})) absl::StrAppendFormat(&marks_, "%.2f,%.2f ", X(x), Y(y));
  };
  for (auto point = points.begin(); point != points.end(); ++point) add(point->x, point->high);
  for (auto point = points.rbegin(); point != points.rend(); ++point) add(point->x, point->low);
  absl::StrAppend(&marks_, "\"/>\n");
}

void SvgChart::AddDot(ChartPoint at, const std::string& color, const std::string& tooltip) {
  if (!Finite(at)) return;
  absl::StrAppendFormat(&marks_, "<circle cx=\"%.2f\" cy=\"%.2f\" r=\"3.5\" fill=\"%s\">", X(at.x),
                        Y(at.y), color);
  if (!tooltip.empty()) absl::StrAppend(&marks_, "<title>", EscapeHtml(tooltip), "</title>");
  absl::StrAppend(&marks_, "</circle>\n");
}

void SvgChart::AddRectangle(ChartPoint low, ChartPoint high, const std::string& color,
                            double opacity) {
  if (!Finite(low) || !Finite(high)) return;
  absl::StrAppendFormat(&marks_,
                        "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\" "
                        "fill-opacity=\"%.3f\"/>\n",
                        X(low.x), Y(high.y), X(high.x) - X(low.x), Y(low.y) - Y(high.y), color,
                        opacity);
}

void SvgChart::AddLegend(const std::string& color, const std::string& name) {
  legend_.emplace_back(color, name);
}

std::string SvgChart::Axes() const {
  const int right = options_.width - kRight;
  const int bottom = options_.height - kBottom;
  std::string text;
  const auto ticks = [](const ChartAxis& axis) {
    return axis.ticks.empty() ? ChooseTicks(axis) : axis.ticks;
  };
  for (const auto& [value, name] : ticks(options_.x)) {
    absl::StrAppendFormat(&text,
                          "<line class=\"grid\" x1=\"%1$.2f\" x2=\"%1$.2f\" y1=\"%2$d\" "
                          "y2=\"%3$d\"/><text x=\"%1$.2f\" y=\"%4$d\" "
                          "text-anchor=\"middle\">%5$s</text>\n",
                          X(value), kTop, bottom, bottom + 15, EscapeHtml(name));
  }
  for (const auto& [value, name] : ticks(options_.y)) {
    absl::StrAppendFormat(&text,
                          "<line class=\"grid\" x1=\"%1$d\" x2=\"%2$d\" y1=\"%3$.2f\" "
                          "y2=\"%3$.2f\"/><text x=\"%4$d\" y=\"%5$.2f\" "
                          "text-anchor=\"end\">%6$s</text>\n",
                          kLeft, right, Y(value), kLeft - 5, Y(value) + 4, EscapeHtml(name));
  }
  absl::StrAppendFormat(&text,
                        "<rect class=\"frame\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/>\n",
                        kLeft, kTop, right - kLeft, bottom - kTop);
  absl::StrAppendFormat(&text,
                        "<text class=\"title\" x=\"%1$d\" y=\"18\" "
                        "text-anchor=\"middle\">%2$s</text>\n",
                        (kLeft + right) / 2, EscapeHtml(options_.title));
  absl::StrAppendFormat(&text, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s</text>\n",
                        (kLeft + right) / 2, options_.height - 10, EscapeHtml(options_.x.label));
  absl::StrAppendFormat(
      &text, "<text transform=\"translate(13 %d) rotate(-90)\" text-anchor=\"middle\">%s</text>\n",
      (kTop + bottom) / 2, EscapeHtml(options_.y.label));
  return text;
}

std::string SvgChart::ToSvg() const {
  const int height = options_.height + kLegendLine * static_cast<int>(legend_.size());
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%1$d\" height=\"%2$d\" viewBox=\"0 0 %1$d "
      "%2$d\" font-family=\"sans-serif\" font-size=\"11\">\n"
      "<style>.grid{stroke:#ddd}.frame{fill:none;stroke:#888}.title{font-size:13px;"
      "font-weight:bold}</style>\n",
      options_.width, height);
  absl::StrAppend(&svg, Axes(), marks_);
  for (size_t i = 0; i < legend_.size(); ++i) {
    const int y = options_.height + kLegendLine * static_cast<int>(i);
    absl::StrAppendFormat(&svg,
                          "<circle cx=\"%d\" cy=\"%d\" r=\"4\" fill=\"%s\"/><text x=\"%d\" "
                          "y=\"%d\">%s</text>\n",
                          kLeft + 4, y, legend_[i].first, kLeft + 14, y + 4,
                          EscapeHtml(legend_[i].second));
  }
  absl::StrAppend(&svg, "</svg>\n");
  return svg;
}

}  // namespace halfstep
