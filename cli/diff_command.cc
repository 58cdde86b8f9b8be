// SPDX-License-Identifier: Apache-2.0
// diff: where two runs part.
#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/commands.h"
#include "cli/runs/run_diff.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

struct DiffArguments {
  std::string run_a;
  std::string run_b;
};

absl::Status Diff(const DiffArguments& arguments, CommandContext& context) {
  HALFSTEP_ASSIGN_OR_RETURN(const RunDiff diff, DiffRuns(arguments.run_a, arguments.run_b));
  if (context.format == OutputFormat::kJson) {
    context.out << DiffToJson(diff).dump(2, ' ', false,
                                         nlohmann::ordered_json::error_handler_t::replace)
                << "\n";
  } else {
    PrintDiff(diff, context.out);
  }
  if (!diff.equal()) context.exit_code = kExitDifferent;
  return absl::OkStatus();
}

}  // namespace

void AddDiffCommand(CLI::App& app, CommandContext& context) {
  auto arguments = std::make_shared<DiffArguments>();
  CLI::App* diff = app.add_subcommand(
      "diff", "Name the first step, sample, token or tensor in which two runs differ");
  diff->add_option("run_a", arguments->run_a, "Run folder (output_dir of a job)")->required();
  diff->add_option("run_b", arguments->run_b, "Another")->required();
  AddFormatOption(*diff, context);
  diff->callback([arguments, &context] {
    const absl::Status status = Diff(*arguments, context);
    context.Finish(status);
    // As with diff(1), 1 says that they differ and never that something failed.
    if (!status.ok() && context.exit_code == kExitFailure) context.exit_code = kExitBadInput;
  });
}

}  // namespace halfstep
