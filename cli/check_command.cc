// SPDX-License-Identifier: Apache-2.0
// check: everything that can be wrong with a job, without running it, or a model's numeric range.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/learner_client.h"
#include "cli/range_report.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "common/config/enum_names.h"
#include "common/config/load_spec.h"
#include "common/config/resolve_spec.h"
#include "common/config/spec_text.h"
#include "common/rpc/flags.h"
#include "learner_server/algorithm/explain.h"
#include "learner_server/training/job_algorithm.h"
#include "learner_server/training/job_settings.h"
#include "learner_server/training/training_job_runner.h"

namespace halfstep {
namespace {

struct CheckArguments {
  std::string file;  // a job, or with `range` a model folder
  bool range = false;
  bool explain = false;
  RangeArguments range_arguments;
  std::string root;
  ChannelOptions learner;
  double timeout_seconds = 60;
};

// Files, model, tokenizer and data, as a learner with this root would find them.
absl::StatusOr<CheckReport> CheckHere(const v1::TrainingJobSpec& resolved,
                                      const std::string& root) {
  TrainingJobRunnerOptions options;
  std::error_code problem;
  options.root = std::filesystem::canonical(root, problem).string();
  if (problem) return absl::NotFoundError(absl::StrCat("--root ", root, " is not a folder"));
  options.state = options.root + "/.halfstep";
  return TrainingJobRunner(options, nullptr, nullptr).Inspect(resolved);
}

absl::Status CheckThere(const v1::TrainingJobSpec& spec, const CheckArguments& arguments) {
  HALFSTEP_ASSIGN_OR_RETURN(
      const auto client,
      LearnerClient::Make(arguments.learner, absl::Seconds(arguments.timeout_seconds)));
  v1::CreateTrainingJobRequest request;
  *request.mutable_spec() = spec;
  request.set_validate_only(true);
  return client->Create(request).status();
}

struct CheckResult {
  std::vector<std::string> checked;
  std::vector<std::string> explanation;  // of the algorithm; empty: not asked for
  CheckReport report;
};

void PrintPlan(const v1::TrainingJobSpec& spec, const CheckResult& result,
               CommandContext& context) {
  const CheckReport& report = result.report;
  if (context.format == OutputFormat::kJson) {
    nlohmann::ordered_json json{{"ok", true},
                                {"checked", result.checked},
                                {"train_rows_skipped", report.train_rows_skipped},
                                {"eval_rows_skipped", report.eval_rows_skipped},
                                {"spec", nlohmann::ordered_json::parse(SpecToJson(spec))}};
    if (!result.explanation.empty()) json["algorithm"] = result.explanation;
    context.out << json.dump(2) << "\n";
    return;
  }
  const v1::BatchSpec& batch = spec.batch();
  const bool rl = spec.objective() == v1::OBJECTIVE_RL;
  const int64_t rows = batch.prompts() * (rl ? batch.samples() : 1);
  PrintTable(
      {{"objective",
        absl::StrCat(YamlName(spec.objective()), ", ", spec.steps(), " steps, seed ", spec.seed())},
       {"batch", rl ? absl::StrCat(batch.prompts(), " prompts x ", batch.samples(), " samples = ",
                                   rows, " sequences per step, ", rows * spec.steps(), " in all")
                    : absl::StrCat(rows, " rows per step, ", rows * spec.steps(), " in all")},
       {"updates",
        absl::StrCat(batch.updates(), " per step, ", rows / batch.updates(),
                     " sequences each; at most ", batch.micro_batch_tokens(), " tokens at a time")},
       {"precision",
        absl::StrCat("rollout ", YamlName(spec.precision().rollout()), ", learner ",
                     YamlName(spec.precision().learner()),
                     spec.precision().residual() == v1::PRECISION_FP32 ? ", residual fp32" : "",
                     spec.precision().head() == v1::PRECISION_FP32 ? ", head fp32" : "",
                     ", profile ", YamlName(spec.profile()))},
       {"output", spec.output_dir().empty() ? "named after the job" : spec.output_dir()}},
      context.out);
  for (const std::string& line : result.explanation) context.out << line << "\n";
  for (const std::string& what : result.checked) context.out << "ok: " << what << "\n";
  const auto print_skipped = [&context](int64_t skipped, const std::string& path) {
    if (skipped == 0) return;
    context.out << "skipped: " << skipped << " rows of " << path
                << " that are longer than the model's positions allow\n";
  };
  print_skipped(report.train_rows_skipped, spec.data().train());
  print_skipped(report.eval_rows_skipped, spec.data().eval());
}

// The options of the two uses of the verb exclude each other.
absl::Status CheckUse(const CheckArguments& arguments) {
  const RangeArguments& range = arguments.range_arguments;
  if (arguments.range) {
    if (!arguments.root.empty() || !arguments.learner.target.empty() || arguments.explain) {
      return absl::InvalidArgumentError(
          "--root, --learner and --explain are for a job file; --range is not");
    }
    if (range.prompts_file.empty()) {
      return absl::InvalidArgumentError(
          "--range needs --prompts FILE.jsonl, what to run the model on");
    }
    return absl::OkStatus();
  }
  if (!range.prompts_file.empty() || range.engine.any() || !range.response_column.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompts, --response-column, ", kEngineFlagNames, " go with --range"));
  }
  std::error_code none;
  if (std::filesystem::is_directory(arguments.file, none)) {
    return absl::InvalidArgumentError(
        absl::StrCat(arguments.file, " is a folder; give a job file, or --range for a model"));
  }
  return absl::OkStatus();
}

absl::Status Check(const CheckArguments& arguments, CommandContext& context) {
  HALFSTEP_RETURN_IF_ERROR(CheckUse(arguments));
  if (arguments.range) {
    RangeArguments range = arguments.range_arguments;
    range.model = arguments.file;
    return ReportRange(range, context);
  }
  v1::TrainingJobSpec spec;
  HALFSTEP_RETURN_IF_ERROR(LoadSpecFile(arguments.file, &spec));
  CheckResult result;
  result.checked = {"job file"};
  v1::TrainingJobSpec resolved = spec;
  ResolveSpec("check", &resolved);
  const absl::StatusOr<Algorithm> algorithm = ResolveAlgorithm(resolved);
  if (!algorithm.ok()) return WithContext(algorithm.status(), arguments.file);
  if (arguments.explain) result.explanation = Explain(*algorithm);
  if (!arguments.root.empty()) {
    HALFSTEP_ASSIGN_OR_RETURN(result.report, CheckHere(resolved, arguments.root));
    result.checked.push_back(absl::StrCat("model, tokenizer and data below ", arguments.root));
  }
  if (!arguments.learner.target.empty()) {
    HALFSTEP_RETURN_IF_ERROR(CheckThere(spec, arguments));
    result.checked.push_back(
        absl::StrCat("the learner at ", arguments.learner.target, " would take it"));
  }
  if (spec.output_dir().empty()) resolved.clear_output_dir();
  PrintPlan(resolved, result, context);
  return absl::OkStatus();
}

}  // namespace

void AddCheckCommand(CLI::App& app, CommandContext& context) {
  auto arguments = std::make_shared<CheckArguments>();
  CLI::App* check =
      app.add_subcommand("check",
                         "Find what is wrong with a job, without running it, or (--range) "
                         "whether a model fits into FP16");
  check->add_option("file", arguments->file, "Job file (YAML); with --range, model folder")
      ->required();
  check->add_option("--root", arguments->root,
                    "Also look at model, tokenizer and data below this folder");
  check->add_option("--learner", arguments->learner.target, "Also ask this learner, host:port");
  check->add_option("--timeout", arguments->timeout_seconds, "Seconds the learner may take")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  check->add_flag("--explain", arguments->explain, "Print the algorithm, choice by choice");
  RangeArguments& range = arguments->range_arguments;
  check->add_flag("--range", arguments->range,
                  "Run the model forward and backward and report its numeric range");
  check->add_option("--prompts", range.prompts_file, "JSONL file of prompts to run it on");
  check->add_option("--prompt-column", range.prompt_column, "Its column that holds the prompt")
      ->capture_default_str();
  check->add_option("--response-column", range.response_column,
                    "Its column of responses, to train on them alone (default: predict the "
                    "prompts' own tokens)");
  AddEngineFlags(*check, range.engine);
  AddChannelFlags(*check, arguments->learner);
  AddFormatOption(*check, context);
  check->callback([arguments, &context] { context.Finish(Check(*arguments, context)); });
}

}  // namespace halfstep
