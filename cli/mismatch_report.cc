// SPDX-License-Identifier: Apache-2.0
#include "cli/mismatch_report.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/console.h"
#include "cli/html_page.h"
#include "cli/report/svg_plot.h"
#include "common/base/build_info.h"

namespace halfstep {
namespace {

using Json = nlohmann::ordered_json;
using Rows = std::vector<std::vector<std::string>>;
using MetricOf = double (*)(const MismatchMetrics&);

// A figure of one cell.
struct Figure {
  std::string name;
  Interval interval;
  std::optional<Interval> ratio;  // to the cell BF16/BF16
};

double AbsMean(const MismatchMetrics& metrics) { return metrics.abs_mean; }
double K3(const MismatchMetrics& metrics) { return metrics.k3; }
double SequenceKl(const MismatchMetrics& metrics) { return metrics.sequence_kl; }

std::string RolloutName(const MismatchCell& cell) {
  return cell.rollout ? Name(*cell.rollout) : "external";
}

std::string CellName(const MismatchCell& cell) {
  return absl::StrCat(RolloutName(cell), "/", Name(cell.learner));
}

// The cell that others are multiples of; null without a matrix.
const MismatchResult* BaseOf(const MismatchReport& report) {
  const MismatchCell base{DType::kBFloat16, DType::kBFloat16};
  if (report.results.size() < 2) return nullptr;
  const auto found =
      std::find_if(report.results.begin(), report.results.end(),
                   [&](const MismatchResult& result) { return result.cell == base; });
  return found == report.results.end() ? nullptr : &*found;
}

Figure MakeFigure(const std::string& name, const MismatchEstimate& estimate,
                  const MismatchEstimate* base, MetricOf metric) {
  Figure figure{name, estimate.Of(metric), std::nullopt};
  if (base != nullptr) figure.ratio = estimate.RatioTo(*base, metric);
  return figure;
}

std::vector<Figure> MismatchFigures(const MismatchResult& result, const MismatchResult* base) {
  std::vector<Figure> figures;
  for (const MismatchMetric& metric : MismatchMetricList()) {
    const bool compared = base != nullptr && metric.vanishes;
    figures.push_back(
        MakeFigure(metric.name, result.mismatch, compared ? &base->mismatch : nullptr, metric.of));
  }
  return figures;
}

// Distance of one side to its own engine in FP32.
std::vector<Figure> OwnFigures(const std::optional<MismatchEstimate>& own,
                               const std::optional<MismatchEstimate>* base) {
  if (!own) return {};
  const MismatchEstimate* const other = base != nullptr && *base ? &**base : nullptr;
  return {MakeFigure("rms", *own, other, RmsOf), MakeFigure("abs_mean", *own, other, AbsMean)};
}

struct CellFigures {
  std::vector<Figure> mismatch, rollout_own, learner_own;
};

CellFigures FiguresOf(const MismatchResult& result, const MismatchResult* base) {
  return {MismatchFigures(result, base),
          OwnFigures(result.rollout_own, base == nullptr ? nullptr : &base->rollout_own),
          OwnFigures(result.learner_own, base == nullptr ? nullptr : &base->learner_own)};
}

std::string Number(double value) { return absl::StrFormat("%.4g", value); }

// What is smaller than its base as a fraction of it: 0.125 as "1/8".
std::string Multiple(double ratio) {
  return ratio > 0 && ratio < 1 ? absl::StrFormat("1/%.3g", 1 / ratio)
                                : absl::StrFormat("%.3g", ratio);
}

void AddRows(const std::string& prefix, const std::vector<Figure>& figures, bool ratios,
             Rows* rows) {
  for (const Figure& figure : figures) {
    auto& row = rows->emplace_back();
    row = {prefix + figure.name, Number(figure.interval.value), Number(figure.interval.low),
           Number(figure.interval.high)};
    if (!ratios) continue;
    for (double Interval::*part : {&Interval::value, &Interval::low, &Interval::high}) {
      row.push_back(figure.ratio ? Multiple((*figure.ratio).*part) : "");
    }
  }
}

Rows CellRows(const MismatchResult& result, const MismatchResult* base) {
  Rows rows = {{"metric", "value", "95 % from", "to"}};
  if (base != nullptr) rows[0].insert(rows[0].end(), {"of bf16/bf16", "95 % from", "to"});
  const CellFigures figures = FiguresOf(result, base);
  AddRows("", figures.mismatch, base != nullptr, &rows);
  AddRows("rollout to its fp32: ", figures.rollout_own, base != nullptr, &rows);
  AddRows("learner to its fp32: ", figures.learner_own, base != nullptr, &rows);
  return rows;
}

std::string CellTitle(const MismatchResult& result) {
  return absl::StrFormat("rollout %s, learner %s: %d tokens of %d responses",
                         RolloutName(result.cell), Name(result.cell.learner),
                         result.mismatch.metrics.tokens_compared,
                         result.mismatch.metrics.sequences);
}

std::string WithInterval(const Interval& interval) {
  return absl::StrFormat("%.3g [%.3g, %.3g]", interval.value, interval.low, interval.high);
}

// A line for each cell.
Rows SummaryRows(const MismatchReport& report) {
  const MismatchResult* const base = BaseOf(report);
  Rows rows = {
      {"rollout/learner", "tokens", "mean |d|", "p99 |d|", "k3", "KL of a response", "bit-equal"}};
  if (base != nullptr) rows[0].push_back("mean |d| of bf16/bf16");
  for (const MismatchResult& result : report.results) {
    const MismatchMetrics& metrics = result.mismatch.metrics;
    auto& row = rows.emplace_back();
    row = {CellName(result.cell),
           absl::StrCat(metrics.tokens_compared),
           WithInterval(result.mismatch.Of(AbsMean)),
           absl::StrFormat("%.3g", metrics.abs_p99),
           WithInterval(result.mismatch.Of(K3)),
           WithInterval(result.mismatch.Of(SequenceKl)),
           Percent(metrics.bit_equal_share)};
    if (base == nullptr) continue;
    const auto ratio = result.mismatch.RatioTo(base->mismatch, AbsMean);
    row.push_back(ratio ? absl::StrCat(Multiple(ratio->value), " [", Multiple(ratio->low), ", ",
                                       Multiple(ratio->high), "]")
                        : "");
  }
  return rows;
}

std::string Conditions(const MismatchReport& report) {
  return absl::StrFormat(
      "%s, %s, profile %s%s%s, temperature %g; d = log pi (learner) - log mu (rollout); "
      "intervals: 95 %% of %d resamples of whole responses",
      report.model, report.source, Name(report.profile),
      report.fp32.residual ? ", residual fp32" : "", report.fp32.head ? ", head fp32" : "",
      report.temperature, report.resamples);
}

// ---- JSON

Json IntervalToJson(const Interval& interval) {
  return {{"value", interval.value}, {"low", interval.low}, {"high", interval.high}};
}

// Null for a side that is FP32 or another program's.
Json FiguresToJson(const std::vector<Figure>& figures) {
  Json out;
  for (const Figure& figure : figures) {
    out[figure.name] = IntervalToJson(figure.interval);
    if (figure.ratio) out[figure.name]["ratio"] = IntervalToJson(*figure.ratio);
  }
  return out;
}

Json BySeedToJson(const MismatchResult& result) {
  Json out = Json::array();
  for (const MismatchMetrics& metrics : result.by_seed) {
    Json one = {{"tokens", metrics.tokens_compared}};
    for (const MismatchMetric& metric : MismatchMetricList()) one[metric.name] = metric.of(metrics);
    out.push_back(std::move(one));
  }
  return out;
}

void AddCurves(const MismatchResult& result, Json* out) {
  Json bins = Json::array();
  for (const DensityBin& bin : result.density) bins.push_back({bin.mu, bin.pi, bin.tokens});
  (*out)["density"] = {{"lowest_decade", kDensityDecades},
                       {"bins_per_decade", kBinsPerDecade},
                       {"bins_mu_pi_tokens", std::move(bins)}};
  Json quantiles = Json::array();
  for (size_t i = 0; i < result.quantiles.size(); ++i) {
    quantiles.push_back({{"share", kQuantileShares[i]}, {"abs", result.quantiles[i]}});
  }
  (*out)["quantiles"] = std::move(quantiles);
  Json drift = Json::array();
  for (const DriftPoint& point : result.drift) {
    drift.push_back({{"tokens", point.tokens},
                     {"responses", point.responses},
                     {"low", point.low},
                     {"median", point.median},
                     {"high", point.high}});
  }
  (*out)["drift"] = std::move(drift);
}

// ---- charts

// In the units of a chart's view box.
constexpr double kLeft = 72;  // ticks and a label
constexpr double kWideChart = 860;

std::string DensityChart(const MismatchResult& result) {
  const Axis axis = MakeAxis(AxisScale::kLog10, std::pow(10.0, kDensityDecades), 1, 6);
  SvgPlot plot({.title = CellName(result.cell),
                .x = {.axis = axis, .label = "rollout's probability mu"},
                .y = {.axis = axis, .label = "learner's probability pi"},
                .height = 310,
                .left = kLeft,
                .grid = true});
  plot.AddLine({{axis.ticks.front(), axis.ticks.front()}, {1, 1}}, 1, LineStyle::kDashed);
  int64_t most = 1;
  for (const DensityBin& bin : result.density) most = std::max(most, bin.tokens);
  const auto edge = [](int32_t bin) {
    return std::pow(10.0, kDensityDecades + static_cast<double>(bin) / kBinsPerDecade);
  };
  for (const DensityBin& bin : result.density) {
    // Counts span decades too. The least is still seen.
    const double shade =
        std::log1p(static_cast<double>(bin.tokens)) / std::log1p(static_cast<double>(most));
    plot.AddRectangle({edge(bin.mu), edge(bin.pi)}, {edge(bin.mu + 1), edge(bin.pi + 1)}, 0,
                      0.3 + 0.7 * shade);
  }
  return plot.ToSvg();
}

// The cells below each other, the first on top.
PlotAxis CellAxis(const MismatchReport& report) {
  const auto cells = static_cast<double>(report.results.size());
  PlotAxis axis{.axis = {AxisScale::kLinear, {0}}, .tick_names = {""}};
  for (auto result = report.results.rbegin(); result != report.results.rend(); ++result) {
    axis.axis.ticks.push_back(static_cast<double>(axis.tick_names.size()) - 0.5);
    axis.tick_names.push_back(CellName(result->cell));
  }
  axis.axis.ticks.push_back(cells);
  axis.tick_names.push_back("");
  return axis;
}

// Nothing where every |d| of every cell is 0, which has no place on a logarithmic axis. Where some
// are, the axis begins a decade below all others, and they stand on its edge.
std::optional<std::string> QuantileChart(const MismatchReport& report) {
  double low = std::numeric_limits<double>::infinity();
  double high = 0;
  bool zeros = false;
  for (const MismatchResult& result : report.results) {
    for (const double quantile : result.quantiles) {
      if (quantile > 0) low = std::min(low, quantile);
      high = std::max(high, quantile);
      zeros |= quantile == 0;
    }
  }
  if (high == 0) return std::nullopt;
  const size_t cells = report.results.size();
  PlotOptions options{
      .title = zeros ? "|d| of tokens; dots on the left edge are 0" : "|d| of tokens",
      .x = {.axis = MakeAxis(AxisScale::kLog10, zeros ? low / 10 : low, high, 10),
            .label = "|d|, nats"},
      .y = CellAxis(report),
      .width = kWideChart,
      .height = 30 + 34 * static_cast<double>(cells),
      .left = 1.5 * kLeft,
      .grid = true};
  for (size_t q = 0; q < std::size(kQuantileShares); ++q) {
    const double share = kQuantileShares[q];
    options.keys.push_back(
        {.name = share == 1 ? "largest"
                            : absl::StrFormat("%g %% of tokens are at most here", 100 * share),
         .colour = q,
         .mark = KeyMark::kDot});
  }
  SvgPlot plot(std::move(options));
  for (size_t i = 0; i < cells; ++i) {
    const MismatchResult& result = report.results[i];
    const double y = static_cast<double>(cells - i) - 0.5;
    plot.AddLine({{result.quantiles.front(), y}, {result.quantiles.back(), y}}, kChartColours - 1);
    for (size_t q = 0; q < result.quantiles.size(); ++q) {
      plot.AddDot({result.quantiles[q], y}, q,
                  absl::StrFormat("%s: %g %% of |d| are at most %.4g", CellName(result.cell),
                                  100 * kQuantileShares[q], result.quantiles[q]));
    }
  }
  return plot.ToSvg();
}

// `bound`: of the y axis, the same for every cell, so that they can be compared.
std::string DriftChart(const MismatchResult& result, double bound) {
  const double longest = result.drift.empty() ? 1 : static_cast<double>(result.drift.back().tokens);
  SvgPlot plot(
      {.title = CellName(result.cell),
       .x = {.axis = MakeAxis(AxisScale::kLinear, 0, longest, 6),
             .label = "tokens of the response"},
       .y = {.axis = MakeAxis(AxisScale::kLinear, -bound, bound, 6), .label = "sum of d, nats"},
       .left = kLeft,
       .grid = true});
  std::vector<PlotPoint> low = {{0, 0}}, median = low, high = low;
  for (const DriftPoint& point : result.drift) {
    const auto x = static_cast<double>(point.tokens);
    low.push_back({x, point.low});
    median.push_back({x, point.median});
    high.push_back({x, point.high});
  }
  plot.AddArea(high, low, 0, AreaFill::kBand);
  plot.AddLine(median, 0);
  return plot.ToSvg();
}

double DriftBound(const MismatchReport& report) {
  double bound = 0;
  for (const MismatchResult& result : report.results) {
    for (const DriftPoint& point : result.drift) {
      bound = std::max({bound, std::abs(point.low), std::abs(point.high)});
    }
  }
  return bound == 0 ? 1 : bound;
}

}  // namespace

const char* Name(Profile profile) { return profile == Profile::kFast ? "fast" : "bitwise"; }

void PrintMismatch(const MismatchReport& report, std::ostream& out) {
  out << Conditions(report) << "\n\n";
  const MismatchResult* const base = BaseOf(report);
  for (const MismatchResult& result : report.results) {
    out << CellTitle(result) << "\n";
    PrintTable(CellRows(result, base), out);
    out << "\n";
  }
  if (report.results.size() > 1) PrintTable(SummaryRows(report), out);
}

Json MismatchToJson(const MismatchReport& report, WithCurves curves) {
  Json out = {{"model", report.model},
              {"source", report.source},
              {"build", BuildId()},
              {"profile", Name(report.profile)},
              {"fp32_residual", report.fp32.residual},
              {"fp32_head", report.fp32.head},
              {"temperature", report.temperature},
              {"samples", report.samples},
              {"seed", report.seed},
              {"seeds", report.seeds},
              {"resamples", report.resamples},
              {"cells", Json::array()}};
  const MismatchResult* const base = BaseOf(report);
  for (const MismatchResult& result : report.results) {
    const CellFigures figures = FiguresOf(result, base);
    Json cell = {{"rollout", RolloutName(result.cell)},
                 {"learner", Name(result.cell.learner)},
                 {"tokens", result.mismatch.metrics.tokens_compared},
                 {"responses", result.mismatch.metrics.sequences},
                 {"metrics", FiguresToJson(figures.mismatch)},
                 {"rollout_to_own_fp32", FiguresToJson(figures.rollout_own)},
                 {"learner_to_own_fp32", FiguresToJson(figures.learner_own)},
                 {"by_seed", BySeedToJson(result)}};
    if (curves == WithCurves::kYes) AddCurves(result, &cell);
    out["cells"].push_back(std::move(cell));
  }
  return out;
}

std::string MismatchPage(const MismatchReport& report) {
  HtmlPage page("Mismatch of rollout and learner");
  page.AddParagraph(absl::StrCat(Conditions(report), ". Made by ", BuildId(), "."));
  page.AddTable(SummaryRows(report));

  page.AddHeading("Probability pairs");
  page.AddParagraph(
      "Tokens by the probability that each side gives them; darker squares hold more, on a "
      "logarithmic scale. On the dashed line both agree.");
  std::vector<std::string> figures;
  for (const MismatchResult& result : report.results) figures.push_back(DensityChart(result));
  page.AddFigures(figures);

  page.AddHeading("Size of the difference");
  if (const auto chart = QuantileChart(report)) {
    page.AddFigure(*chart);
  } else {
    page.AddParagraph("Every token's d is exactly 0.");
  }

  page.AddHeading("Drift along a response");
  page.AddParagraph(
      "The sum of d over the first tokens of a response: median and the range from 5 % to 95 % of "
      "the responses that are as long.");
  const double bound = DriftBound(report);
  figures.clear();
  for (const MismatchResult& result : report.results) figures.push_back(DriftChart(result, bound));
  page.AddFigures(figures);

  for (const MismatchResult& result : report.results) {
    page.AddHeading(CellTitle(result));
    page.AddTable(CellRows(result, BaseOf(report)));
  }
  return page.ToHtml();
}

}  // namespace halfstep
