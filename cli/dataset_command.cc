// SPDX-License-Identifier: Apache-2.0
// dataset: makes data sets. `dataset sanity` keeps the prompts that a model can be perfected on.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/evaluation_flags.h"
#include "cli/perfectible_prompts.h"
#include "cli/progress_bar.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/shutdown_signal.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct SanityArguments {
  EvaluationFlags flags;
  std::string accuracy = "0.2,0.8";
  int64_t limit = 0;
  std::string output;
};

struct SanityResult {
  PerfectiblePrompts prompts;
  AccuracyRange range;
  int64_t skipped = 0;  // prompts too long for the model
  absl::Duration time;
};

// Found out before the work and not after it.
absl::Status CheckOutput(const SanityArguments& arguments) {
  std::error_code problem;
  if (fs::equivalent(arguments.output, arguments.flags.data, problem)) {
    return Error(absl::StatusCode::kInvalidArgument, "OUTPUT_IS_INPUT",
                 absl::StrCat("--output ", arguments.output,
                              " is the file of --prompts, which it would replace; give another"));
  }
  const fs::path folder = fs::path(arguments.output).parent_path();
  if (folder.empty() || fs::is_directory(folder, problem)) return absl::OkStatus();
  return Error(
      absl::StatusCode::kNotFound, "FILE_NOT_FOUND",
      absl::StrCat("the folder of --output ", arguments.output, " does not exist; make it first"));
}

absl::StatusOr<SanityResult> Sample(const SanityArguments& arguments, const EvaluationPlan& plan,
                                    CommandContext& context) {
  SanityResult result;
  HALFSTEP_ASSIGN_OR_RETURN(result.range, ParseAccuracyRange(arguments.accuracy));
  HALFSTEP_RETURN_IF_ERROR(CheckOutput(arguments));
  HALFSTEP_ASSIGN_OR_RETURN(std::shared_ptr<const Verifier> verifier, MakeVerifier(plan.reward));
  HALFSTEP_ASSIGN_OR_RETURN(const JobInputs inputs, LoadEvaluationInputs(plan.settings));
  const PromptDataset& prompts = inputs.eval.value();
  result.skipped = prompts.skipped();

  ProgressBar bar(&context.err, isatty(STDERR_FILENO) == 1);
  const absl::Time start = absl::Now();
  PerfectibleOptions options;
  options.range = result.range;
  options.limit = arguments.limit;
  options.threads = arguments.flags.engine.threads;
  options.on_progress = [&](int64_t done, int64_t total) {
    std::optional<absl::Duration> left;
    if (done > 0) left = (absl::Now() - start) * static_cast<double>(total - done) / done;
    bar.Draw(done, total, left);
    return !context.signal->requested();
  };
  HALFSTEP_ASSIGN_OR_RETURN(
      result.prompts, FindPerfectiblePrompts(plan.settings, inputs, std::move(verifier), options));
  result.time = absl::Now() - start;
  return result;
}

void PrintJson(const SanityArguments& arguments, const EvaluationPlan& plan,
               const SanityResult& result, std::ostream& out) {
  const PerfectiblePrompts& prompts = result.prompts;
  const Json object = {{"model", plan.settings.model_directory},
                       {"prompts", plan.settings.eval_path},
                       {"output", arguments.output},
                       {"accuracy", {result.range.low, result.range.high}},
                       {"kept", prompts.kept.size()},
                       {"below", prompts.below},
                       {"above", prompts.above},
                       {"sampled", prompts.sampled()},
                       {"prompts_skipped", result.skipped},
                       {"samples", plan.settings.evaluation_samples},
                       {"histogram", prompts.histogram},
                       {"mean_accuracy", prompts.mean_accuracy},
                       {"unscored", Json(prompts.unscored)},
                       {"truncated", prompts.truncated},
                       {"temperature", plan.settings.sampling.temperature},
                       {"seed", plan.settings.seed},
                       {"precision", Name(plan.settings.rollout_dtype)},
                       {"fp32_residual", plan.settings.fp32.residual},
                       {"fp32_head", plan.settings.fp32.head},
                       {"tokens", prompts.tokens},
                       {"seconds", absl::ToDoubleSeconds(result.time)}};
  out << object.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl;
}

// A row for each tenth of accuracy, with a bar of at most this many signs.
constexpr int64_t kBarLength = 40;

void PrintHistogram(const PerfectiblePrompts& prompts, std::ostream& out) {
  const int64_t most = *std::max_element(prompts.histogram.begin(), prompts.histogram.end());
  std::vector<std::vector<std::string>> rows = {{"accuracy", "prompts", ""}};
  for (size_t i = 0; i < kAccuracyBins; ++i) {
    const int64_t count = prompts.histogram[i];
    const int64_t bar = (count * kBarLength + most - 1) / most;
    rows.push_back({absl::StrFormat("%d - %d %%", i * 10, i * 10 + 10), absl::StrCat(count),
                    std::string(static_cast<size_t>(bar), '#')});
  }
  PrintTable(rows, out);
}

void PrintForPeople(const SanityArguments& arguments, const EvaluationPlan& plan,
                    const SanityResult& result, std::ostream& out) {
  const PerfectiblePrompts& prompts = result.prompts;
  const int64_t samples = plan.settings.evaluation_samples;
  const int64_t responses = prompts.sampled() * samples;
  PrintHistogram(prompts, out);
  std::vector<std::vector<std::string>> rows = {
      {"kept", absl::StrCat(prompts.kept.size(), " prompts with an accuracy from ",
                            Percent(result.range.low), " to ", Percent(result.range.high), ", in ",
                            arguments.output)},
      {"below", absl::StrCat(prompts.below)},
      {"above", absl::StrCat(prompts.above)},
      {"sampled", absl::StrCat(prompts.sampled(), " prompts of ", plan.settings.eval_path, ", ",
                               samples, samples == 1 ? " response each" : " responses each")},
      {"accuracy", absl::StrCat(Percent(prompts.mean_accuracy), " over all of them")}};
  if (result.skipped > 0) {
    rows.push_back({"skipped", absl::StrCat(result.skipped, " prompts too long for the model")});
  }
  for (const auto& [outcome, count] : prompts.unscored) {
    rows.push_back({outcome, absl::StrCat(count, " of ", responses, " responses, counted as 0")});
  }
  if (!prompts.unscored_example.empty()) rows.push_back({"", prompts.unscored_example});
  if (prompts.truncated > 0) {
    rows.push_back({"cut off", absl::StrCat(prompts.truncated, " of ", responses,
                                            " responses at their longest length")});
  }
  rows.push_back({"generated",
                  absl::StrFormat("%s tokens in %.1f s", Short(static_cast<double>(prompts.tokens)),
                                  absl::ToDoubleSeconds(result.time))});
  out << "\n";
  PrintTable(rows, out);
}

absl::Status Sanity(const SanityArguments& arguments, CommandContext& context) {
  HALFSTEP_ASSIGN_OR_RETURN(const EvaluationPlan plan, PlanEvaluation(arguments.flags));
  HALFSTEP_ASSIGN_OR_RETURN(const SanityResult result, Sample(arguments, plan, context));
  HALFSTEP_ASSIGN_OR_RETURN(const std::string rows,
                            LinesOfFile(plan.settings.eval_path, result.prompts.kept));
  HALFSTEP_RETURN_IF_ERROR(WriteFileAtomic(arguments.output, rows));
  if (context.format == OutputFormat::kJson) {
    PrintJson(arguments, plan, result, context.out);
  } else {
    PrintForPeople(arguments, plan, result, context.out);
  }
  return absl::OkStatus();
}

}  // namespace

void AddDatasetCommand(CLI::App& app, CommandContext& context) {
  auto arguments = std::make_shared<SanityArguments>();
  EvaluationFlags& flags = arguments->flags;
  flags.samples = 40;
  CLI::App* dataset = app.add_subcommand("dataset", "Make data sets");
  dataset->require_subcommand(1);
  CLI::App* verb = dataset->add_subcommand(
      "sanity", "Keep the prompts that a model gets right sometimes, but not always");
  verb->add_option("model", flags.model, "Model folder (Hugging Face)")->required();
  verb->add_option("--prompts", flags.data, "JSONL file of prompts and answers")->required();
  verb->add_option("--output", arguments->output, "File for the rows that are kept, as they were")
      ->required();
  verb->add_option("--samples", flags.samples, "Responses to each prompt (default: 40)")
      ->check(CLI::Range(1, 4096));
  verb->add_option("--accuracy", arguments->accuracy, "Range that is kept, both ends included")
      ->option_text("LOW,HIGH")
      ->capture_default_str();
  verb->add_option("--limit", arguments->limit,
                   "End with this many kept (default: take every prompt)")
      ->check(CLI::PositiveNumber);
  AddEvaluationFlags(*verb, flags);
  AddFormatOption(*verb, context);
  verb->callback([arguments, &context] { context.Finish(Sanity(*arguments, context)); });
}

}  // namespace halfstep
