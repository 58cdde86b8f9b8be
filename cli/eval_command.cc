// SPDX-License-Identifier: Apache-2.0
// eval: accuracy of a model folder on held-out prompts, as a job would measure it.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/evaluation_flags.h"
#include "cli/local_evaluation.h"
#include "cli/progress_bar.h"
#include "common/base/file.h"
#include "common/base/shutdown_signal.h"
#include "common/base/status_macros.h"
#include "common/tokenizer/tokenizer.h"

namespace halfstep {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct EvalArguments {
  EvaluationFlags flags;
  int64_t step = 0;
  std::string samples_file;
};

// What people want to know beside accuracy.
struct Details {
  std::map<std::string, int64_t> unscored;  // by outcome
  std::string example;                      // why one of them has no score
  int64_t truncated = 0;
  double mean_length = 0;  // of sampled responses
};

Details DetailsOf(const LocalEvaluation& evaluation) {
  Details details;
  const int64_t sampled = evaluation.result.prompts * evaluation.result.samples;
  int64_t tokens = 0;
  for (size_t i = 0; i < evaluation.trajectories.size(); ++i) {
    const Trajectory& trajectory = evaluation.trajectories[i];
    details.truncated += trajectory.sample.finish_reason == FinishReason::kLength;
    if (i < static_cast<size_t>(sampled)) {
      tokens += static_cast<int64_t>(trajectory.sample.tokens.size());
    }
    if (trajectory.reward.outcome == RewardOutcome::kScore) continue;
    ++details.unscored[Name(trajectory.reward.outcome)];
    if (details.example.empty()) details.example = trajectory.reward.detail;
  }
  details.mean_length = static_cast<double>(tokens) / static_cast<double>(sampled);
  return details;
}

double TokensPerSecond(const EvaluationResult& result) {
  return static_cast<double>(result.tokens) / absl::ToDoubleSeconds(result.time);
}

void PrintJson(const EvaluationPlan& plan, const JobInputs& inputs,
               const LocalEvaluation& evaluation, std::ostream& out) {
  const EvaluationResult& result = evaluation.result;
  const Details details = DetailsOf(evaluation);
  const Json object = {{"model", plan.settings.model_directory},
                       {"data", plan.settings.eval_path},
                       {"accuracy", result.accuracy},
                       {"greedy", result.greedy},
                       {"prompts", result.prompts},
                       {"prompts_skipped", inputs.eval->skipped()},
                       {"samples", result.samples},
                       {"temperature", plan.settings.sampling.temperature},
                       {"seed", plan.settings.seed},
                       {"precision", Name(plan.settings.rollout_dtype)},
                       {"fp32_residual", plan.settings.fp32.residual},
                       {"fp32_head", plan.settings.fp32.head},
                       {"unscored", Json(details.unscored)},
                       {"truncated", details.truncated},
                       {"mean_length", details.mean_length},
                       {"tokens", result.tokens},
                       {"seconds", absl::ToDoubleSeconds(result.time)},
                       {"tokens_per_second", TokensPerSecond(result)}};
  out << object.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl;
}

void PrintForPeople(const EvaluationPlan& plan, const JobInputs& inputs,
                    const LocalEvaluation& evaluation, std::ostream& out) {
  const EvaluationResult& result = evaluation.result;
  const Details details = DetailsOf(evaluation);
  const int64_t responses = static_cast<int64_t>(evaluation.trajectories.size());
  std::vector<std::vector<std::string>> rows = {
      {absl::StrFormat("temperature %g", plan.settings.sampling.temperature),
       absl::StrCat(Percent(result.accuracy), " with ", result.samples,
                    result.samples == 1 ? " sample each" : " samples each")},
      {"greedy", Percent(result.greedy)},
      {"prompts", absl::StrCat(result.prompts, " of ", plan.settings.eval_path)}};
  if (inputs.eval->skipped() > 0) {
    rows.push_back(
        {"skipped", absl::StrCat(inputs.eval->skipped(), " prompts too long for the model")});
  }
  for (const auto& [outcome, count] : details.unscored) {
    rows.push_back({outcome, absl::StrCat(count, " of ", responses, " responses, counted as 0")});
  }
  if (!details.example.empty()) rows.push_back({"", details.example});
  if (details.truncated > 0) {
    rows.push_back({"cut off", absl::StrCat(details.truncated, " of ", responses,
                                            " responses at their longest length")});
  }
  rows.push_back({"mean length", absl::StrFormat("%.1f tokens", details.mean_length)});
  rows.push_back({"generated", absl::StrFormat("%s tokens in %.1f s (%s per second)",
                                               Short(static_cast<double>(result.tokens)),
                                               absl::ToDoubleSeconds(result.time),
                                               Short(TokensPerSecond(result)))});
  PrintTable(rows, out);
}

// A line for every response.
std::string SamplesText(const JobInputs& inputs, const LocalEvaluation& evaluation) {
  const int64_t prompts = evaluation.result.prompts;
  const int64_t samples = evaluation.result.samples;
  std::string text;
  for (size_t i = 0; i < evaluation.trajectories.size(); ++i) {
    const Trajectory& trajectory = evaluation.trajectories[i];
    const int64_t at = static_cast<int64_t>(i);
    const bool greedy = at >= prompts * samples;
    const DatasetRow& row = inputs.eval->row(greedy ? at - prompts * samples : at / samples);
    Json line = {
        {"line", row.line},
        {"prompt", inputs.tokenizer->Decode(row.prompt)},
        {"answer", row.target},
        {"greedy", greedy},
        {"index", trajectory.sample.index},
        {"response", inputs.tokenizer->Decode(trajectory.sample.tokens, SpecialTokens::kOmit)},
        {"tokens", trajectory.sample.tokens},
        {"finish_reason", Name(trajectory.sample.finish_reason)},
        {"outcome", Name(trajectory.reward.outcome)}};
    if (trajectory.reward.outcome == RewardOutcome::kScore) {
      line["score"] = trajectory.reward.score;
    } else {
      line["detail"] = trajectory.reward.detail;
    }
    absl::StrAppend(&text, line.dump(-1, ' ', false, Json::error_handler_t::replace), "\n");
  }
  return text;
}

// Found out before the work and not after it.
absl::Status CheckSamplesFile(const std::string& path) {
  if (path.empty()) return absl::OkStatus();
  const fs::path folder = fs::path(path).parent_path();
  std::error_code problem;
  if (folder.empty() || fs::is_directory(folder, problem)) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat("the folder of --samples-file ", path, " does not exist; make it first"));
}

absl::Status Eval(const EvalArguments& arguments, CommandContext& context) {
  if (arguments.flags.job.empty() &&
      (arguments.flags.model.empty() || arguments.flags.data.empty())) {
    return absl::InvalidArgumentError(
        "nothing to evaluate; give a model folder and --data FILE.jsonl, or --job job.yaml");
  }
  HALFSTEP_ASSIGN_OR_RETURN(const EvaluationPlan plan, PlanEvaluation(arguments.flags));
  HALFSTEP_RETURN_IF_ERROR(CheckSamplesFile(arguments.samples_file));
  HALFSTEP_ASSIGN_OR_RETURN(std::shared_ptr<const Verifier> verifier, MakeVerifier(plan.reward));
  HALFSTEP_ASSIGN_OR_RETURN(const JobInputs inputs, LoadEvaluationInputs(plan.settings));

  LocalEvaluation evaluation;
  {
    ProgressBar bar(&context.err, isatty(STDERR_FILENO) == 1);
    const absl::Time start = absl::Now();
    LocalEvaluationOptions options;
    options.point.step = arguments.step;
    options.threads = arguments.flags.engine.threads;
    options.on_progress = [&](int64_t done, int64_t total) {
      std::optional<absl::Duration> left;
      if (done > 0) left = (absl::Now() - start) * static_cast<double>(total - done) / done;
      bar.Draw(done, total, left);
      return !context.signal->requested();
    };
    HALFSTEP_ASSIGN_OR_RETURN(evaluation,
                              EvaluateHere(plan.settings, inputs, std::move(verifier), options));
  }
  if (!arguments.samples_file.empty()) {
    HALFSTEP_RETURN_IF_ERROR(
        WriteFileAtomic(arguments.samples_file, SamplesText(inputs, evaluation)));
  }
  if (context.format == OutputFormat::kJson) {
    PrintJson(plan, inputs, evaluation, context.out);
  } else {
    PrintForPeople(plan, inputs, evaluation, context.out);
  }
  return absl::OkStatus();
}

}  // namespace

void AddEvalCommand(CLI::App& app, CommandContext& context) {
  auto arguments = std::make_shared<EvalArguments>();
  CLI::App* verb = app.add_subcommand("eval", "Accuracy of a model folder on held-out prompts");
  EvaluationFlags& flags = arguments->flags;
  verb->add_option("model", flags.model, "Model folder (Hugging Face; default: the job's)");
  verb->add_option("--data", flags.data, "JSONL file of prompts and answers");
  verb->add_option("--samples", flags.samples, "Responses to each prompt (default: 4)")
      ->check(CLI::Range(1, 4096));
  AddEvaluationFlags(*verb, flags);
  verb->add_option("--step", arguments->step, "Draw as the job's evaluation after this step does")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--samples-file", arguments->samples_file,
                   "Write every response with its score to this file (JSONL)");
  AddFormatOption(*verb, context);
  verb->callback([arguments, &context] { context.Finish(Eval(*arguments, context)); });
}

}  // namespace halfstep
