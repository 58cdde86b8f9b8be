// SPDX-License-Identifier: Apache-2.0
// report: one HTML page of one or more runs.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/report/curve_file.h"
#include "cli/report/report_page.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

struct ReportArguments {
  std::vector<std::string> runs;
  std::string output;
  bool force = false;
  std::string curves;  // folder
  std::vector<std::string> metrics = {"reward_mean"};
  CurveFileOptions curve;  // but the metric and its scale
};

// Of what is positive and spread over powers of ten.
AxisScale ScaleOf(const std::string& metric) {
  const bool logarithmic =
      metric == "grad_norm" ||
      (absl::StartsWith(metric, "mismatch_") &&
       (absl::StrContains(metric, "_k2") || absl::StrContains(metric, "_k3") ||
        absl::StrContains(metric, "_abs") || absl::StrContains(metric, "_kl")));
  return logarithmic ? AxisScale::kLog10 : AxisScale::kLinear;
}

// A page may be made again; anything else that lies there is somebody's.
absl::Status CheckOutput(const ReportArguments& arguments) {
  std::error_code error;
  if (arguments.force || !std::filesystem::exists(arguments.output, error)) {
    return absl::OkStatus();
  }
  std::string beginning(512, '\0');
  std::ifstream file(arguments.output, std::ios::binary);
  file.read(beginning.data(), static_cast<std::streamsize>(beginning.size()));
  if (IsReportPage(beginning)) return absl::OkStatus();
  return Error(absl::StatusCode::kFailedPrecondition, "OUTPUT_EXISTS",
               absl::StrCat(arguments.output,
                            " exists and is no report; give another file with -o, or --force to "
                            "replace it"));
}

// DIR/METRIC.svg for each metric.
absl::Status WriteCurves(const ReportArguments& arguments, const std::vector<ReportRun>& runs) {
  std::error_code error;
  std::filesystem::create_directories(arguments.curves, error);
  if (error) return FileError(error.value(), "make --curves", arguments.curves);
  std::vector<RunRecord> records;
  for (const ReportRun& run : runs) records.push_back(run.record);
  CurveFileOptions options = arguments.curve;
  for (const std::string& metric : arguments.metrics) {
    options.metric = metric;
    options.scale = ScaleOf(metric);
    const std::string svg = CurveFileSvg(records, options);
    if (svg.empty()) {
      return Error(absl::StatusCode::kInvalidArgument, "NO_SUCH_METRIC",
                   absl::StrCat("--metric ", metric, ": none of the runs has a value for it; ",
                                "docs/run_folder.md lists what metrics.jsonl may hold"));
    }
    HALFSTEP_RETURN_IF_ERROR(
        WriteFileAtomic(absl::StrCat(arguments.curves, "/", metric, ".svg"), svg));
  }
  return absl::OkStatus();
}

absl::Status Report(ReportArguments arguments, CommandContext& context) {
  if (arguments.output.empty()) arguments.output = arguments.runs.front() + "/report.html";
  std::vector<ReportRun> runs;
  for (const std::string& path : arguments.runs) {
    ReportRun run;
    HALFSTEP_ASSIGN_OR_RETURN(run.record, ReadRun(path));
    HALFSTEP_ASSIGN_OR_RETURN(run.samples, ReadSampleExcerpt(run.record, {}));
    runs.push_back(std::move(run));
  }
  HALFSTEP_RETURN_IF_ERROR(CheckOutput(arguments));
  if (!arguments.curves.empty()) HALFSTEP_RETURN_IF_ERROR(WriteCurves(arguments, runs));
  HALFSTEP_RETURN_IF_ERROR(WriteFileAtomic(arguments.output, ReportPage(runs)));
  if (context.format == OutputFormat::kJson) {
    context.out << nlohmann::ordered_json{{"report", arguments.output}, {"runs", arguments.runs}}
                       .dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace)
                << "\n";
  } else {
    context.out << arguments.output << "\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddReportCommand(CLI::App& app, CommandContext& context) {
  auto arguments = std::make_shared<ReportArguments>();
  CLI::App* report = app.add_subcommand("report", "Draw runs on one HTML page, over each other");
  report->add_option("runs", arguments->runs, "Run folders (output_dir of a job)")->required();
  report->add_option("-o,--output", arguments->output,
                     "File to write (default: report.html in the first run folder)");
  report->add_flag("--force", arguments->force, "Replace a file that is no report");
  CLI::Option* curves = report->add_option("--curves", arguments->curves,
                                           "Also write curves as METRIC.svg into this folder");
  report
      ->add_option("--metric", arguments->metrics,
                   "Of those curves: a key of metrics.jsonl; may be repeated")
      ->needs(curves)
      ->capture_default_str();
  report
      ->add_option("--points", arguments->curve.points,
                   "Of each at most: means of equally many neighbouring steps")
      ->needs(curves)
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  report
      ->add_flag("--merge-seeds", arguments->curve.merge_seeds,
                 "One of them for jobs that differ by the seed alone: mean, least and largest")
      ->needs(curves);
  AddFormatOption(*report, context);
  report->callback([arguments, &context] { context.Finish(Report(*arguments, context)); });
}

}  // namespace halfstep
