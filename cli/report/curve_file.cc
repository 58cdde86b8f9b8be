// SPDX-License-Identifier: Apache-2.0
#include "cli/report/curve_file.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <utility>

namespace halfstep {
namespace {

using FlatJob = std::vector<std::pair<std::string, std::string>>;

// Runs that are drawn as one curve.
struct CurveRuns {
  std::string name;
  FlatJob job;  // without what may differ
  std::vector<const RunRecord*> runs;
};

std::string NameOf(const RunRecord& run) {
  std::filesystem::path path = std::filesystem::path(run.path).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return path.filename().string();
}

FlatJob WithoutSeed(const RunRecord& run) {
  FlatJob job = FlattenJob(run.job);
  job.erase(std::remove_if(job.begin(), job.end(),
                           [](const auto& entry) {
                             return entry.first == "seed" || entry.first == "output_dir";
                           }),
            job.end());
  return job;
}

// "bf16-s1" and "bf16-s2": "bf16". What follows the last sign that both have is cut as well, so
// that no half of a word stays.
std::string CommonName(const std::string& a, const std::string& b) {
  const auto differ = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  if (differ.first == a.end() && differ.second == b.end()) return a;
  std::string common(a.begin(), differ.first);
  while (!common.empty() && std::isalnum(static_cast<unsigned char>(common.back())) != 0) {
    common.pop_back();
  }
  while (!common.empty() && std::isalnum(static_cast<unsigned char>(common.back())) == 0) {
    common.pop_back();
  }
  return common.empty() ? a : common;
}

std::vector<CurveRuns> CurvesOf(const std::vector<RunRecord>& runs, bool merge_seeds) {
  std::vector<CurveRuns> curves;
  for (const RunRecord& run : runs) {
    FlatJob job = WithoutSeed(run);
    const auto same = std::find_if(curves.begin(), curves.end(), [&](const CurveRuns& curve) {
      return merge_seeds && curve.job == job;
    });
    if (same == curves.end()) {
      curves.push_back({NameOf(run), std::move(job), {&run}});
      continue;
    }
    same->name = same->runs.size() == 1 ? CommonName(same->name, NameOf(run)) : same->name;
    same->runs.push_back(&run);
  }
  return curves;
}

std::vector<CurvePoint> PointsOf(const RunRecord& run, const CurveFileOptions& options) {
  for (const MetricTable* table : {&run.steps, &run.evaluations}) {
    const auto found = table->numbers.find(options.metric);
    if (found != table->numbers.end()) return Bucketed(found->second, options.points);
  }
  return {};
}

// As far as all runs that have the metric reach.
std::vector<CurvePoint> Merged(const CurveRuns& curve, const CurveFileOptions& options) {
  std::vector<CurvePoint> merged;
  size_t count = 0;
  for (const RunRecord* run : curve.runs) {
    const std::vector<CurvePoint> points = PointsOf(*run, options);
    if (points.empty()) continue;
    ++count;
    if (count == 1) {
      merged = points;
      // The band is of the runs, not of the steps that a point stands for.
      for (CurvePoint& point : merged) point.low = point.high = point.mean;
      if (curve.runs.size() == 1) return points;
      continue;
    }
    merged.resize(std::min(merged.size(), points.size()));
    for (size_t i = 0; i < merged.size(); ++i) {
      merged[i].low = std::min(merged[i].low, points[i].mean);
      merged[i].high = std::max(merged[i].high, points[i].mean);
      merged[i].mean += points[i].mean;
    }
  }
  for (CurvePoint& point : merged) point.mean /= static_cast<double>(count);
  return merged;
}

}  // namespace

std::string CurveFileSvg(const std::vector<RunRecord>& runs, const CurveFileOptions& options) {
  LineChart chart;
  chart.title = options.metric;
  chart.scale = options.scale;
  for (const CurveRuns& curve : CurvesOf(runs, options.merge_seeds)) {
    std::vector<CurvePoint> points = Merged(curve, options);
    if (points.empty()) continue;
    chart.curves.push_back(
        {curve.name, chart.curves.size(), LineStyle::kSolid, false, std::move(points)});
  }
  const std::string svg = LineChartSvg(chart);
  return svg.empty() ? "" : StandaloneSvg(svg);
}

}  // namespace halfstep
