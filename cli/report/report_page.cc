// SPDX-License-Identifier: Apache-2.0
#include "cli/report/report_page.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/report/curve.h"
#include "cli/report/html_text.h"
#include "cli/report/svg_chart.h"
#include "common/base/build_info.h"

namespace halfstep {
namespace {

namespace fs = std::filesystem;

constexpr char kMarker[] = "<meta name=\"generator\" content=\"halfstep report\">";
constexpr size_t kMaxNameBytes = 28;
constexpr size_t kMaxResponseBytes = 2000;

constexpr char kStyle[] =
    R"(:root{color-scheme:light dark;--paper:#fff;--soft:#5d666f;--mark:#fff3cd}
@media (prefers-color-scheme:dark){:root{--paper:#15181b;--soft:#9aa4ad;--mark:#4a3f1c}}body{margin:0 auto;padding:12px;max-width:1500px;
background:var(--paper);color:var(--ink);font:15px/1.45 system-ui,sans-serif}h1{font-size:22px;
margin:8px 0}h2{font-size:18px;margin:24px 0 8px}p{color:var(--soft);margin:4px 0;max-width:75ch}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));gap:18px}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px}th,td{text-align:left;
vertical-align:top;padding:4px 10px 4px 0;border-bottom:1px solid var(--faint)}
th,td{white-space:nowrap}th{font-weight:600}pre{margin:0;white-space:pre-wrap;
overflow-wrap:anywhere;min-width:22ch;max-height:12em;overflow-y:auto;
font:12px/1.4 ui-monospace,monospace}details{margin:14px 0}summary{cursor:pointer;font-weight:600}
.differs{background:var(--mark)}.key{display:inline-block;width:12px;height:12px;margin-right:6px}
)";

struct ChartCurve {
  const char* key;
  const char* name;  // "" for a chart with one curve a run
};
struct ChartPlan {
  const char* title;
  AxisScale scale;
  std::vector<ChartCurve> curves;  // solid, dashed, dotted
};

const std::vector<ChartPlan>& ChartPlans() {
  constexpr AxisScale kLinear = AxisScale::kLinear, kLog10 = AxisScale::kLog10;
  static const std::vector<ChartPlan>* const plans = new std::vector<ChartPlan>{
      {"Reward, mean of the batch", kLinear, {{"reward_mean", ""}}},
      {"Accuracy on held-out prompts",
       kLinear,
       {{"eval_accuracy", "sampled"}, {"eval_greedy", "greedy"}}},
      {"Response length, tokens", kLinear, {{"length_mean", ""}}},
      {"Entropy, nats per token", kLinear, {{"entropy", ""}}},
      {"Mismatch: KL per token (k3)", kLog10, {{"mismatch_k3", ""}}},
      {"Mismatch: KL per response", kLog10, {{"mismatch_sequence_kl", ""}}},
      {"Mismatch: |log \xcf\x80 \xe2\x88\x92 log \xce\xbc|",
       kLog10,
       {{"mismatch_abs_mean", "mean"}, {"mismatch_abs_p99", "p99"}, {"mismatch_abs_max", "max"}}},
      {"Mismatch: share of bit-equal log-probs", kLinear, {{"mismatch_bit_equal_share", ""}}},
      {"Loss scale", AxisScale::kLog2, {{"loss_scale", ""}}},
      {"Skipped steps, so far", kLinear, {{"skipped_steps", ""}}},
      {"Gradient norm, before clipping", kLog10, {{"grad_norm", ""}}},
      {"Loss", kLinear, {{"loss", ""}}},
      {"Clipped tokens",
       kLinear,
       {{"clip_fraction", "all updates"}, {"phantom_clip_fraction", "before the policy moved"}}},
      {"Groups and responses that teach little",
       kLinear,
       {{"zero_std_group_share", "all rewards equal"}, {"truncated_share", "cut off"}}},
      {"Learning rate", kLinear, {{"learning_rate", ""}}},
      {"Tokens per second", kLinear, {{"tokens_per_second", ""}}},
  };
  return *plans;
}

// What a step's time is made of, in the order of its parts.
constexpr std::pair<const char*, const char*> kPhases[] = {
    {"time_wait", "wait"},
    {"time_score", "score"},
    {"time_reference", "reference policy"},
    {"time_rescore", "old log-probs"},
    {"time_forward_backward", "forward and backward"},
    {"time_optimizer", "optimizer"},
    {"time_publish", "publish"},
};

const std::vector<MetricPoint>* Find(const RunRecord& run, const std::string& key) {
  for (const MetricTable* table : {&run.steps, &run.evaluations}) {
    const auto found = table->numbers.find(key);
    if (found != table->numbers.end()) return &found->second;
  }
  return nullptr;
}

std::string Shortened(const std::string& text) {
  return text.size() <= kMaxNameBytes ? text : "..." + text.substr(text.size() - kMaxNameBytes + 3);
}

// The last parts of the paths, two or as many as it takes to tell them apart: many runs lie in a
// folder called run.
std::vector<std::string> NamesOf(const std::vector<ReportRun>& runs) {
  std::vector<std::string> names;
  for (int parts = 2; parts <= 8; ++parts) {
    names.clear();
    for (const ReportRun& run : runs) {
      fs::path path = fs::path(run.record.path).lexically_normal();
      if (!path.has_filename()) path = path.parent_path();
      if (path.filename() == "." || path.filename() == "..")
        path = fs::absolute(path).lexically_normal();
      fs::path name;
      for (int i = 0; i < parts && path.has_filename(); ++i, path = path.parent_path()) {
        name = name.empty() ? path.filename() : path.filename() / name;
      }
      names.push_back(Shortened(name.empty() ? run.record.path : name.string()));
    }
    if (std::set<std::string>(names.begin(), names.end()).size() == names.size()) break;
  }
  return names;
}

class PageWriter {
 public:
  explicit PageWriter(const std::vector<ReportRun>& runs) : runs_(runs), names_(NamesOf(runs)) {}

  std::string Write() {
    Open();
    Summary();
    Charts();
    TimeCharts();
    OtherCharts();
    for (size_t i = 0; i < runs_.size(); ++i) Samples(i);
    Jobs();
    Add("</body>\n</html>\n");
    return std::move(out_);
  }

 private:
  void Add(const std::string& text) { out_ += text; }

  void Open() {
    const std::string title = EscapeHtml(absl::StrJoin(names_, ", "));
    Add(absl::StrCat("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
                     kMarker,
                     "\n<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
                     "<link rel=\"icon\" href=\"data:,\">\n<title>",
                     title, "</title>\n<style>\n", ChartColours(), kStyle, ChartStyle(),
                     "</style>\n</head>\n<body>\n<h1>", title, "</h1>\n"));
  }

  // "12.3 s", or nothing where the run has no such figure.
  static std::string Last(const RunRecord& run, const std::string& key, const char* format) {
    const std::vector<MetricPoint>* values = Find(run, key);
    if (values == nullptr || values->empty()) return "";
    char text[64];
    std::snprintf(text, sizeof(text), format, values->back().value);
    return text;
  }

  static std::string FirstToLast(const RunRecord& run, const std::string& key) {
    const std::vector<MetricPoint>* values = Find(run, key);
    if (values == nullptr || values->empty()) return "";
    return absl::StrFormat("%.1f %% \xe2\x86\x92 %.1f %%", 100 * values->front().value,
                           100 * values->back().value);
  }

  static double Sum(const RunRecord& run, const std::string& key) {
    double sum = 0;
    const std::vector<MetricPoint>* values = Find(run, key);
    if (values == nullptr) return 0;
    for (const MetricPoint& point : *values) sum += std::isfinite(point.value) ? point.value : 0;
    return sum;
  }

  static std::string Largest(const RunRecord& run, const std::string& key) {
    const std::vector<MetricPoint>* values = Find(run, key);
    if (values == nullptr) return "none compared";
    double largest = 0;
    for (const MetricPoint& point : *values) largest = std::fmax(largest, point.value);
    return absl::StrFormat("%.3g", largest);
  }

  void TableRow(const std::vector<std::string>& cells) {
    Add("<tr><td>" + absl::StrJoin(cells, "</td><td>") + "</td></tr>\n");
  }

  std::string Key(size_t run) const {
    return absl::StrFormat("<span class=\"key\" style=\"background:var(--c%d)\"></span>%s",
                           run % kChartColours, EscapeHtml(names_[run]));
  }

  void Summary() {
    Add("<div class=\"wide\"><table>\n<tr><th>run</th><th>steps</th><th>held-out, sampled</th>"
        "<th>greedy</th><th>last reward</th><th>largest |log-prob difference|</th>"
        "<th>skipped steps</th><th>tokens trained</th><th>time in steps</th></tr>\n");
    for (size_t i = 0; i < runs_.size(); ++i) {
      const RunRecord& run = runs_[i].record;
      const auto planned = run.job.find("steps");
      TableRow({Key(i),
                absl::StrCat(std::max<int64_t>(run.steps.last_step, 0),
                             planned == run.job.end() ? "" : " of " + EscapeHtml(planned->dump())),
                FirstToLast(run, "eval_accuracy"), FirstToLast(run, "eval_greedy"),
                Last(run, "reward_mean", "%.3f"), Largest(run, "mismatch_abs_max"),
                Last(run, "skipped_steps", "%.0f"), absl::StrFormat("%.0f", Sum(run, "tokens")),
                absl::StrFormat("%.0f s", Sum(run, "time_total"))});
    }
    Add("</table></div>\n");
    Add(absl::StrCat("<p>Made by ", EscapeHtml(BuildId()), ". ", BucketNote(), "</p>\n"));
  }

  std::string BucketNote() const {
    int64_t longest = 0;
    for (const ReportRun& run : runs_) longest = std::max(longest, run.record.steps.lines);
    const int64_t most = static_cast<int64_t>(kMaxCurvePoints);
    if (longest <= most) return "Every step is drawn.";
    return absl::StrCat("Curves have at most ", most,
                        " points: of the longest run each is the mean of ",
                        (longest + most - 1) / most,
                        " neighbouring steps, in a band from the least to the largest of them.");
  }

  void Charts() {
    Add("<h2>Curves</h2>\n<div class=\"charts\">\n");
    std::vector<std::string> missing;
    for (const ChartPlan& plan : ChartPlans()) {
      const std::string svg = Chart(plan.title, plan.scale, plan.curves);
      if (svg.empty()) missing.push_back(plan.title);
      Add(svg);
    }
    Add("</div>\n");
    if (!missing.empty()) {
      Add("<p>Not in " + std::string(runs_.size() == 1 ? "this run: " : "these runs: ") +
          EscapeHtml(absl::StrJoin(missing, "; ")) + ".</p>\n");
    }
  }

  std::string Chart(const std::string& title, AxisScale scale,
                    const std::vector<ChartCurve>& curves) {
    constexpr LineStyle kStyles[] = {LineStyle::kSolid, LineStyle::kDashed, LineStyle::kDotted};
    LineChart chart;
    chart.title = title;
    chart.scale = scale;
    for (size_t run = 0; run < runs_.size(); ++run) {
      for (size_t i = 0; i < curves.size(); ++i) {
        drawn_.insert(curves[i].key);
        const std::vector<MetricPoint>* values = Find(runs_[run].record, curves[i].key);
        if (values == nullptr) continue;
        Curve curve;
        const std::string part = curves[i].name;
        curve.name = runs_.size() == 1 && !part.empty()
                         ? part
                         : absl::StrCat(names_[run], part.empty() ? "" : ", ", part);
        curve.colour = run;
        curve.style = kStyles[i % 3];
        curve.markers = values->size() <= 40;
        curve.points = Bucketed(*values, kMaxCurvePoints);
        chart.curves.push_back(std::move(curve));
      }
    }
    return LineChartSvg(chart);
  }

  void TimeCharts() {
    Add("<h2>Where the time of a step went, seconds</h2>\n<div class=\"charts\">\n");
    for (size_t run = 0; run < runs_.size(); ++run) {
      StackedChart chart;
      chart.title = names_[run];
      const RunRecord& record = runs_[run].record;
      const std::vector<MetricPoint>* total = Find(record, "time_total");
      std::vector<CurvePoint> rest;
      if (total != nullptr) rest = Bucketed(*total, kMaxCurvePoints);
      drawn_.insert("time_total");
      for (const auto& [key, name] : kPhases) {
        drawn_.insert(key);
        const std::vector<MetricPoint>* values = Find(record, key);
        if (values == nullptr) continue;
        Curve layer;
        layer.name = name;
        layer.colour = chart.layers.size();
        layer.points = Bucketed(*values, kMaxCurvePoints);
        for (size_t i = 0; i < rest.size() && i < layer.points.size(); ++i) {
          rest[i].mean -= layer.points[i].mean;
        }
        chart.layers.push_back(std::move(layer));
      }
      if (!rest.empty()) {
        for (CurvePoint& point : rest) point.mean = std::max(point.mean, 0.0);
        chart.layers.push_back({"other", kChartColours - 1, LineStyle::kSolid, false, rest});
      }
      Add(StackedChartSvg(chart));
    }
    Add("</div>\n");
  }

  // Whatever else the runs logged, so that a metric needs no line here to be seen.
  void OtherCharts() {
    std::set<std::string> others;
    for (const ReportRun& run : runs_) {
      for (const MetricTable* table : {&run.record.steps, &run.record.evaluations}) {
        for (const auto& [key, values] : table->numbers) {
          if (drawn_.count(key) == 0) others.insert(key);
        }
      }
    }
    if (others.empty()) return;
    Add(absl::StrCat("<details><summary>", others.size(),
                     " more metrics</summary>\n<div class=\"charts\">\n"));
    for (const std::string& key : others) {
      Add(Chart(key, AxisScale::kLinear, {{key.c_str(), ""}}));
    }
    Add("</div></details>\n");
  }

  static std::string Excerpt(const std::string& text) {
    size_t size = std::min(text.size(), kMaxResponseBytes);
    // Not within a character.
    while (size > 0 && size < text.size() && (text[size] & 0xc0) == 0x80) --size;
    return EscapeHtml(text.substr(0, size)) + (size < text.size() ? " [...]" : "");
  }

  void Samples(size_t run) {
    const std::optional<SampleExcerpt>& samples = runs_[run].samples;
    Add("<h2>Responses of " + EscapeHtml(names_[run]) + "</h2>\n");
    if (!samples) {
      Add("<p>The run saved none; <code>save_samples: true</code> in a job does.</p>\n");
      return;
    }
    Add(absl::StrCat("<p>", samples->rows.size(), " of ", samples->lines, " lines of ",
                     EscapeHtml(SamplesPathOf(runs_[run].record.path)), ", spread over ",
                     samples->steps, " steps. Row: line of the training data.</p>\n"));
    Add("<div class=\"wide\"><table>\n<tr><th>step</th><th>group</th><th>sample</th><th>row</th>"
        "<th>prompt</th><th>response</th><th>tokens</th><th>end</th><th>reward</th>"
        "<th>advantage</th><th>policy version</th><th>rollout</th></tr>\n");
    for (const SampleRow& row : samples->rows) {
      TableRow({absl::StrCat(row.step), absl::StrCat(row.group), absl::StrCat(row.index),
                absl::StrCat(row.row),
                row.prompt ? "<pre>" + Excerpt(*row.prompt) + "</pre>" : std::string("not found"),
                "<pre>" + Excerpt(row.text) + "</pre>", absl::StrCat(row.tokens),
                EscapeHtml(row.finish_reason), EscapeHtml(row.reward),
                row.advantage ? absl::StrFormat("%.4g", *row.advantage) : std::string("none"),
                EscapeHtml(row.versions), EscapeHtml(row.rollout)});
    }
    Add("</table></div>\n");
  }

  // One column a run; rows where they differ are marked.
  void Jobs() {
    std::vector<std::string> keys;
    std::vector<std::map<std::string, std::string>> jobs;
    for (const ReportRun& run : runs_) {
      jobs.emplace_back();
      for (const auto& [key, value] : FlattenJob(run.record.job)) {
        if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
        jobs.back()[key] = value;
      }
    }
    Add(absl::StrCat(
        "<details><summary>", runs_.size() == 1 ? "Resolved job" : "Resolved jobs",
        "</summary>\n<div class=\"wide\"><table>\n<tr><th>key</th><th>",
        absl::StrJoin(names_, "</th><th>",
                      [](std::string* out, const std::string& name) { *out += EscapeHtml(name); }),
        "</th></tr>\n"));
    for (const std::string& key : keys) {
      bool differs = false;
      std::string cells;
      for (const auto& job : jobs) {
        const auto value = job.find(key);
        const auto first = jobs.front().find(key);
        differs |=
            (value == job.end()) != (first == jobs.front().end()) ||
            (value != job.end() && first != jobs.front().end() && value->second != first->second);
        cells += "<td>" + (value == job.end() ? "" : EscapeHtml(value->second)) + "</td>";
      }
      Add(absl::StrCat("<tr", differs ? " class=\"differs\"" : "", "><td>", EscapeHtml(key),
                       "</td>", cells, "</tr>\n"));
    }
    Add("</table></div></details>\n");
  }

  const std::vector<ReportRun>& runs_;
  const std::vector<std::string> names_;
  std::set<std::string> drawn_;  // keys that have a chart
  std::string out_;
};

}  // namespace

std::string ReportPage(const std::vector<ReportRun>& runs) { return PageWriter(runs).Write(); }

bool IsReportPage(const std::string& beginning) { return absl::StrContains(beginning, kMarker); }

}  // namespace halfstep
