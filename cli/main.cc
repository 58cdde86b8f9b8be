// SPDX-License-Identifier: Apache-2.0
// halfstep: the command line.
#include <CLI/CLI.hpp>
#include <map>
#include <string>

#include "cli/commands.h"
#include "common/base/build_info.h"
#include "common/base/logging.h"
#include "common/base/shutdown_signal.h"

namespace halfstep {

void CommandContext::Finish(const absl::Status& status) {
  if (status.ok()) return;
  PrintError(status, format, out, err);
  exit_code = ExitCodeOf(status);
}

void AddFormatOption(CLI::App& command, CommandContext& context) {
  static const std::map<std::string, OutputFormat> names = {{"table", OutputFormat::kTable},
                                                            {"json", OutputFormat::kJson}};
  command.add_option("--format", context.format, "table (for people) or json (for programs)")
      ->transform(CLI::CheckedTransformer(names))
      ->option_text("table|json");
}

}  // namespace halfstep

int main(int argc, char** argv) {
  halfstep::ShutdownSignal signal;
  halfstep::InitLogging("halfstep", "warning").IgnoreError();
  halfstep::CommandContext context;
  context.signal = &signal;

  CLI::App app("Fine-tunes language models by reinforcement learning, in FP16 on both sides.");
  app.set_version_flag("--version", halfstep::BuildId());
  app.require_subcommand(1);
  halfstep::AddLocalCommands(app, context);
  halfstep::AddJobCommands(app, context);
  halfstep::AddCheckCommand(app, context);
  halfstep::AddGenerateCommand(app, context);
  halfstep::AddEvalCommand(app, context);
  halfstep::AddDatasetCommand(app, context);
  halfstep::AddMismatchCommand(app, context);
  halfstep::AddGradientBiasCommand(app, context);
  halfstep::AddReportCommand(app, context);
  halfstep::AddDiffCommand(app, context);
  halfstep::AddReplayCommand(app, context);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? halfstep::kExitOk : halfstep::kExitBadInput;
  }
  return context.exit_code;
}
