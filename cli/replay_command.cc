// SPDX-License-Identifier: Apache-2.0
// replay: the updates of a run with free generation once more, from its log.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cli/commands.h"
#include "cli/local_engine.h"
#include "cli/runs/run_record.h"
#include "common/base/error_reason.h"
#include "common/base/shutdown_signal.h"
#include "common/base/status_macros.h"
#include "learner_server/training/replay.h"

namespace halfstep {
namespace {

namespace fs = std::filesystem;

struct ReplayArguments {
  std::string run;
  std::string root;
  int threads = 0;
};

// Where the learner's --root was: above the run's output_dir, unless it is given.
absl::StatusOr<std::string> RootOf(const ReplayArguments& arguments) {
  std::error_code problem;
  if (!arguments.root.empty()) {
    const std::string root = fs::canonical(arguments.root, problem).string();
    if (!problem) return root;
    return absl::NotFoundError(absl::StrCat("--root ", arguments.root, " is not a folder"));
  }
  HALFSTEP_ASSIGN_OR_RETURN(const RunRecord run, ReadRun(arguments.run));
  const auto output = run.job.find("output_dir");
  const std::string path = fs::canonical(arguments.run, problem).string();
  absl::string_view above = path;
  if (!problem && output != run.job.end() && output->is_string() &&
      absl::ConsumeSuffix(&above, absl::StrCat("/", output->get<std::string>()))) {
    return std::string(above);
  }
  return Error(absl::StatusCode::kInvalidArgument, "ROOT_UNKNOWN",
               absl::StrCat(arguments.run,
                            " does not lie where its job's output_dir says; give "
                            "--root, the folder below which the job's model is"));
}

std::string Verdict(const ReplayResult& result) {
  if (result.equal) return "REPLAY_EQUAL";
  return absl::StrCat("REPLAY_DIFFERS after step ", result.differs_after);
}

void Print(const ReplayResult& result, CommandContext& context) {
  if (context.format == OutputFormat::kJson) {
    nlohmann::ordered_json json{{"equal", result.equal},
                                {"steps", result.steps},
                                {"has_end", result.has_end},
                                {"torn", result.torn}};
    if (!result.failure.ok()) {
      json["failure"] = {{"reason", ReasonOf(result.failure)},
                         {"message", std::string(result.failure.message())}};
    }
    if (!result.equal) {
      json["first_difference"] = {{"step", result.differs_after},
                                  {"what", result.what},
                                  {"recorded", result.recorded},
                                  {"replayed", result.replayed}};
    } else {
      json["weights_digest"] = result.weights_digest;
      json["state_digest"] = result.state_digest;
    }
    context.out << json.dump(2) << "\n";
    return;
  }
  if (!result.equal) {
    PrintTable(
        {{"step", "what", "recorded", "replayed"},
         {absl::StrCat(result.differs_after), result.what, result.recorded, result.replayed}},
        context.out);
  } else {
    PrintTable({{"weights_digest", result.weights_digest}, {"state_digest", result.state_digest}},
               context.out);
    if (result.torn) context.out << "note: a last record that is not whole was left out\n";
    if (!result.failure.ok()) {
      context.out << "note: the last batch of the log ends in " << ReasonOf(result.failure) << ": "
                  << result.failure.message() << "\n";
    } else if (!result.has_end) {
      context.out << "note: the log has no end, so nothing says what its last step came to\n";
    }
  }
  context.out << Verdict(result) << ": " << result.steps << " steps trained again\n";
}

absl::Status Replay(const ReplayArguments& arguments, CommandContext& context) {
  ReplayOptions options;
  options.run = arguments.run;
  HALFSTEP_ASSIGN_OR_RETURN(options.root, RootOf(arguments));
  options.threads = ThreadsOrAll(arguments.threads);
  options.go_on = [&context](int64_t step) {
    if (context.format == OutputFormat::kTable) context.err << "step " << step << "\n";
    return !context.signal->requested();
  };
  HALFSTEP_ASSIGN_OR_RETURN(const ReplayResult result, ReplayRun(options));
  Print(result, context);
  if (!result.equal) context.exit_code = kExitDifferent;
  return absl::OkStatus();
}

}  // namespace

void AddReplayCommand(CLI::App& app, CommandContext& context) {
  auto arguments = std::make_shared<ReplayArguments>();
  CLI::App* replay = app.add_subcommand(
      "replay",
      "Train a run with batch.max_lag again from its log, and compare the weights to the bit");
  replay->add_option("run", arguments->run, "Run folder (output_dir of a job)")->required();
  replay->add_option("--root", arguments->root,
                     "What the job's paths are below (default: what lies above its output_dir)");
  replay->add_option("--threads", arguments->threads, "0: one per core")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  AddFormatOption(*replay, context);
  replay->callback([arguments, &context] {
    const absl::Status status = Replay(*arguments, context);
    context.Finish(status);
    // As with diff, 1 says that the weights differ and never that something failed.
    if (!status.ok() && context.exit_code == kExitFailure) context.exit_code = kExitBadInput;
  });
}

}  // namespace halfstep
