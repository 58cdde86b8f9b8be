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

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
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
};

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
  AddFormatOption(*report, context);
  report->callback([arguments, &context] { context.Finish(Report(*arguments, context)); });
}

}  // namespace halfstep
