// SPDX-License-Identifier: Apache-2.0
// The verbs of `halfstep`. Each Add function adds its subcommands to `app`, which must not outlive
// what it is given; a verb that was run leaves its exit code in `context`.
#pragma once

#include <iostream>

#include "cli/console.h"
#include "cli/exit_code.h"

namespace CLI {
class App;
}

namespace halfstep {

class ShutdownSignal;

// What every verb has. Results go to `out`, progress and errors of people's format to `err`.
struct CommandContext {
  const ShutdownSignal* signal = nullptr;
  std::ostream& out = std::cout;
  std::ostream& err = std::cerr;
  OutputFormat format = OutputFormat::kTable;
  ExitCode exit_code = kExitOk;

  // Prints the error, if it is one, and sets the exit code.
  void Finish(const absl::Status& status);
};

// --format of a subcommand.
void AddFormatOption(CLI::App& command, CommandContext& context);

// submit, list, get, watch, pause, resume, cancel
void AddJobCommands(CLI::App& app, CommandContext& context);
// check
void AddCheckCommand(CLI::App& app, CommandContext& context);
// generate
void AddGenerateCommand(CLI::App& app, CommandContext& context);
// eval
void AddEvalCommand(CLI::App& app, CommandContext& context);
// dataset sanity
void AddDatasetCommand(CLI::App& app, CommandContext& context);
// mismatch
void AddMismatchCommand(CLI::App& app, CommandContext& context);
// gradient-bias
void AddGradientBiasCommand(CLI::App& app, CommandContext& context);
// report
void AddReportCommand(CLI::App& app, CommandContext& context);
// diff
void AddDiffCommand(CLI::App& app, CommandContext& context);
// replay
void AddReplayCommand(CLI::App& app, CommandContext& context);
// demo, train
void AddLocalCommands(CLI::App& app, CommandContext& context);

}  // namespace halfstep
