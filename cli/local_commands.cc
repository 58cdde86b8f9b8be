// SPDX-License-Identifier: Apache-2.0
// demo and train: a job on this machine, with a learner and rollouts of its own.
#include <CLI/CLI.hpp>
#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cli/commands.h"
#include "cli/local_run.h"
#include "common/base/digest.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/config/load_spec.h"
#include "common/config/spec_text.h"

namespace halfstep {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct LocalArguments {
  std::string file;
  std::string root = ".";
  std::string output_dir;
  int rollouts = -1;  // not given
  std::optional<uint64_t> seed;
  std::optional<int64_t> steps;
  bool permute_rewards = false;
};

// Where the demo's job, model and data are: beside an installed binary, or in the source tree.
absl::StatusOr<std::string> ExamplesFolder() {
  std::error_code problem;
  const fs::path self = fs::read_symlink("/proc/self/exe", problem);
  for (const fs::path& candidate : {self.parent_path().parent_path() / "share/halfstep/examples",
                                    fs::path(HALFSTEP_EXAMPLES_DIR)}) {
    if (fs::exists(candidate / "demo.yaml", problem)) return candidate.string();
  }
  return Error(absl::StatusCode::kNotFound, "EXAMPLES_NOT_FOUND",
               absl::StrCat("the demo's files are neither in ", HALFSTEP_EXAMPLES_DIR,
                            " nor installed; run from a source tree"));
}

// An absolute path to an empty folder, made if need be.
absl::StatusOr<std::string> EmptyFolder(std::string path) {
  if (path.empty()) {
    path = absl::FormatTime("runs/demo-%Y%m%d-%H%M%S", absl::Now(), absl::LocalTimeZone());
  }
  std::error_code problem;
  fs::create_directories(path, problem);
  if (problem) return FileError(problem.value(), "create", path);
  if (!fs::is_empty(path, problem)) {
    return Error(absl::StatusCode::kFailedPrecondition, "OUTPUT_DIR_NOT_EMPTY",
                 absl::StrCat(path, " is not empty; name another with --output-dir"));
  }
  return fs::canonical(path).string();
}

// Model and data, so that the run's folder holds all it was made from.
absl::Status CopyInputs(const fs::path& examples, const fs::path& folder) {
  std::error_code problem;
  fs::create_directories(folder / "demo", problem);
  for (const char* name : {"model", "train.jsonl", "eval.jsonl"}) {
    fs::copy(examples / "demo" / name, folder / "demo" / name, fs::copy_options::recursive,
             problem);
    if (problem) return FileError(problem.value(), "copy", (examples / "demo" / name).string());
  }
  return absl::OkStatus();
}

// Fewer steps than the job's warm-up shorten the warm-up with them.
void OverrideSteps(int64_t steps, v1::TrainingJobSpec* spec) {
  spec->set_steps(steps);
  v1::OptimizerSpec* optimizer = spec->mutable_optimizer();
  if (optimizer->warmup_steps() > steps) optimizer->set_warmup_steps(steps);
}

absl::StatusOr<LocalRunOptions> PrepareDemo(const LocalArguments& arguments) {
  LocalRunOptions run;
  HALFSTEP_ASSIGN_OR_RETURN(const std::string examples, ExamplesFolder());
  HALFSTEP_RETURN_IF_ERROR(LoadSpecFile(examples + "/demo.yaml", &run.spec));
  HALFSTEP_ASSIGN_OR_RETURN(run.root, EmptyFolder(arguments.output_dir));
  HALFSTEP_RETURN_IF_ERROR(CopyInputs(examples, run.root));
  run.run_directory = run.root;
  run.rollouts = arguments.rollouts < 0 ? 2 : arguments.rollouts;
  run.spec.set_output_dir("run");
  if (arguments.seed) run.spec.set_seed(*arguments.seed);
  if (arguments.steps) OverrideSteps(*arguments.steps, &run.spec);
  if (arguments.permute_rewards) run.spec.mutable_reward()->set_permute(true);
  run.request_id = "demo";
  HALFSTEP_RETURN_IF_ERROR(WriteFileAtomic(run.root + "/job.yaml", SpecToYaml(run.spec)));
  return run;
}

absl::StatusOr<LocalRunOptions> PrepareTrain(const LocalArguments& arguments) {
  LocalRunOptions run;
  HALFSTEP_RETURN_IF_ERROR(LoadSpecFile(arguments.file, &run.spec));
  std::error_code problem;
  run.root = fs::canonical(arguments.root, problem).string();
  if (problem) return FileError(problem.value(), "open --root", arguments.root);
  run.run_directory = run.root + "/.halfstep";
  const int usual = run.spec.objective() == v1::OBJECTIVE_SFT ? 0 : 2;
  run.rollouts = arguments.rollouts < 0 ? usual : arguments.rollouts;
  if (!arguments.output_dir.empty()) run.spec.set_output_dir(arguments.output_dir);
  if (arguments.seed) run.spec.set_seed(*arguments.seed);
  if (arguments.steps) OverrideSteps(*arguments.steps, &run.spec);
  // The same job again is the same request, which goes on where an interrupted one was.
  run.request_id = "train-" + DigestOf(SpecToYaml(run.spec)).Hex();
  return run;
}

double PerSecond(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

Json ResultJson(const LocalRun& run, const LocalRunOptions& options) {
  const v1::RunSummary& summary = run.job.summary();
  Json result = SummaryToJson(summary);
  result["job"] = JobIdOf(run.job.name());
  result["state"] =
      run.job.state() == v1::TrainingJob::STATE_SUCCEEDED ? "succeeded" : "not succeeded";
  result["seed"] = run.job.spec().seed();
  result["steps"] = run.job.step();
  result["rollouts"] = options.rollouts;
  result["tokens_generated_per_second"] =
      PerSecond(summary.tokens_generated(), summary.train_seconds());
  result["tokens_trained_per_second"] =
      PerSecond(summary.tokens_trained(), summary.train_seconds());
  result["ready_seconds"] = run.ready_seconds;
  result["peak_memory_bytes"] = run.peak_memory_bytes;
  return result;
}

std::string TokenText(int64_t tokens, double seconds) {
  return absl::StrCat(Short(static_cast<double>(tokens)), " (", Short(PerSecond(tokens, seconds)),
                      " per second)");
}

void PrintResult(const LocalRun& run, const LocalRunOptions& options, std::ostream& out) {
  const v1::RunSummary& summary = run.job.summary();
  out << "\n";
  std::vector<std::vector<std::string>> rows;
  if (summary.has_base_accuracy() && summary.has_final_accuracy()) {
    rows.push_back(
        {"held-out prompts", absl::StrCat(Percent(summary.base_accuracy()), " -> ",
                                          Percent(summary.final_accuracy()), " at temperature 1")});
    rows.push_back({"", absl::StrCat(Percent(summary.base_greedy()), " -> ",
                                     Percent(summary.final_greedy()), " greedy")});
  }
  if (summary.has_final_accuracy_learner()) {
    rows.push_back(
        {"", absl::StrFormat("%s by the learner's engine, mean |log mu - log pi| %.2g",
                             Percent(summary.final_accuracy_learner()), summary.deployment_gap())});
  }
  rows.push_back(
      {"steps", absl::StrCat(run.job.step(), " in ",
                             absl::StrFormat("%.1f s", summary.train_seconds()), " of training")});
  if (options.rollouts > 0) {
    rows.push_back(
        {"tokens generated", TokenText(summary.tokens_generated(), summary.train_seconds())});
  }
  rows.push_back({"tokens trained", TokenText(summary.tokens_trained(), summary.train_seconds())});
  if (summary.tokens_compared() > 0) {
    rows.push_back({"max |log mu - log pi|",
                    absl::StrFormat("%g over %s tokens", summary.max_abs_logprob_diff(),
                                    Short(static_cast<double>(summary.tokens_compared())))});
  }
  rows.push_back(
      {"loss scale", absl::StrFormat("%g at the end, %d steps skipped", summary.final_loss_scale(),
                                     summary.skipped_steps())});
  rows.push_back({"weights digest", summary.weights_digest()});
  rows.push_back({"checkpoint", summary.checkpoint()});
  rows.push_back({"run folder", summary.output_dir()});
  rows.push_back(
      {"peak memory", absl::StrFormat("%.2f GB over all processes",
                                      static_cast<double>(run.peak_memory_bytes) / 1e9)});
  PrintTable(rows, out);
}

void PrintNextCommands(const LocalRun& run, std::ostream& out) {
  const std::string folder = fs::path(run.job.summary().output_dir()).parent_path().string();
  out << "\nNext:\n"
      << "  halfstep check " << folder << "/job.yaml --root " << folder
      << "    # the job, resolved\n"
      << "  halfstep demo --rollouts 3 --seed " << run.job.spec().seed()
      << "    # other processes, the same weights digest\n"
      << "  halfstep train my_job.yaml --root .    # your model, your prompts\n";
}

absl::Status RunAndPrint(const absl::StatusOr<LocalRunOptions>& options, bool is_demo,
                         CommandContext& context) {
  HALFSTEP_RETURN_IF_ERROR(options.status());
  HALFSTEP_ASSIGN_OR_RETURN(const LocalRun run, RunHere(*options, context));
  const bool succeeded = run.job.state() == v1::TrainingJob::STATE_SUCCEEDED;
  if (!succeeded) context.exit_code = kExitJobFailed;
  if (context.format == OutputFormat::kJson) {
    context.out << ResultJson(run, *options).dump() << std::endl;
  } else if (succeeded) {
    PrintResult(run, *options, context.out);
    if (is_demo) PrintNextCommands(run, context.out);
  }
  return absl::OkStatus();
}

void AddSharedOptions(CLI::App& verb, LocalArguments& arguments, CommandContext& context) {
  verb.add_option("--rollouts", arguments.rollouts, "Rollout processes")->check(CLI::Range(0, 64));
  verb.add_option("--seed", arguments.seed, "Of everything that is random");
  verb.add_option("--steps", arguments.steps, "Batches to train on")->check(CLI::PositiveNumber);
  AddFormatOption(verb, context);
}

}  // namespace

void AddLocalCommands(CLI::App& app, CommandContext& context) {
  auto arguments = std::make_shared<LocalArguments>();
  CLI::App* demo = app.add_subcommand(
      "demo", "Watch a small model learn arithmetic, on this machine, in minutes");
  AddSharedOptions(*demo, *arguments, context);
  demo->add_option("--output-dir", arguments->output_dir,
                   "Folder for everything (default: runs/demo-<time>)");
  demo->add_flag("--permute-rewards", arguments->permute_rewards,
                 "The control experiment: rewards are permuted, so nothing should be learned");
  demo->callback([arguments, &context] {
    context.Finish(RunAndPrint(PrepareDemo(*arguments), /*is_demo=*/true, context));
  });

  CLI::App* train = app.add_subcommand(
      "train", "Run your job on this machine; again after an interruption to go on");
  train->add_option("file", arguments->file, "Job file (YAML)")->required();
  train->add_option("--root", arguments->root, "Folder that every path of the job is below")
      ->capture_default_str();
  AddSharedOptions(*train, *arguments, context);
  train->add_option("--output-dir", arguments->output_dir, "In place of the job's output_dir");
  train->callback([arguments, &context] {
    context.Finish(RunAndPrint(PrepareTrain(*arguments), /*is_demo=*/false, context));
  });
}

}  // namespace halfstep
