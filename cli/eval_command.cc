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
#include "cli/engine_flags.h"
#include "cli/local_evaluation.h"
#include "cli/progress_bar.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/shutdown_signal.h"
#include "common/base/status_macros.h"
#include "common/config/enum_names.h"
#include "common/config/load_spec.h"
#include "common/config/resolve_spec.h"
#include "common/tokenizer/tokenizer.h"
#include "halfstep/v1/training_job.pb.h"

namespace halfstep {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// What is given overrides the job.
struct EvalArguments {
  std::string model;
  std::string data;
  std::string job;
  std::string root = ".";
  std::optional<std::string> prompt_column;
  std::optional<std::string> answer_column;
  std::optional<std::string> reward;
  std::optional<std::string> reward_pattern;
  std::optional<int64_t> samples;
  std::optional<float> temperature;
  std::optional<int32_t> max_new_tokens;
  std::optional<uint64_t> seed;
  int64_t step = 0;
  EngineFlags engine;
  std::string samples_file;
};

struct Evaluated {
  JobSettings settings;
  v1::RewardSpec reward;
};

absl::StatusOr<Evaluated> FromJob(const EvalArguments& arguments) {
  v1::TrainingJobSpec spec;
  HALFSTEP_RETURN_IF_ERROR(LoadSpecFile(arguments.job, &spec));
  ResolveSpec("eval", &spec);
  std::error_code problem;
  const std::string root = fs::canonical(arguments.root, problem).string();
  if (problem) return FileError(problem.value(), "open --root", arguments.root);
  Evaluated evaluated;
  HALFSTEP_ASSIGN_OR_RETURN(evaluated.settings, MakeJobSettings(spec, root));
  evaluated.reward = spec.reward();
  return evaluated;
}

// The defaults of a job, but for prompts that are too long, which are counted.
Evaluated WithoutJob() {
  Evaluated evaluated;
  evaluated.settings.prompt_column = "prompt";
  evaluated.settings.target_column = "answer";
  evaluated.settings.evaluation_samples = 4;
  evaluated.settings.overlong = OverlongPolicy::kSkip;
  evaluated.reward.set_type(v1::REWARD_TYPE_EXACT_MATCH);
  return evaluated;
}

template <class From, class To>
void Override(const std::optional<From>& from, To* to) {
  if (from) *to = *from;
}

absl::Status OverrideReward(const EvalArguments& arguments, v1::RewardSpec* reward) {
  if (arguments.reward) {
    reward->Clear();
    for (const v1::RewardType type :
         {v1::REWARD_TYPE_EXACT_MATCH, v1::REWARD_TYPE_NUMERIC, v1::REWARD_TYPE_REGEX}) {
      if (YamlName(type) == *arguments.reward) reward->set_type(type);
    }
  }
  if (arguments.reward_pattern) reward->set_pattern(*arguments.reward_pattern);
  if (reward->type() == v1::REWARD_TYPE_REGEX && reward->pattern().empty()) {
    return absl::InvalidArgumentError("--reward regex needs --reward-pattern");
  }
  return absl::OkStatus();
}

absl::StatusOr<Evaluated> Settings(const EvalArguments& arguments) {
  if (arguments.job.empty() && (arguments.model.empty() || arguments.data.empty())) {
    return absl::InvalidArgumentError(
        "nothing to evaluate; give a model folder and --data FILE.jsonl, or --job job.yaml");
  }
  Evaluated evaluated = WithoutJob();
  if (!arguments.job.empty()) {
    HALFSTEP_ASSIGN_OR_RETURN(evaluated, FromJob(arguments));
  }
  JobSettings& settings = evaluated.settings;
  if (!arguments.model.empty()) settings.model_directory = arguments.model;
  if (!arguments.data.empty()) settings.eval_path = arguments.data;
  if (settings.eval_path.empty()) {
    return Error(absl::StatusCode::kInvalidArgument, "NO_EVAL_DATA",
                 absl::StrCat(arguments.job, " names no data.eval; give --data FILE.jsonl"));
  }
  Override(arguments.prompt_column, &settings.prompt_column);
  Override(arguments.answer_column, &settings.target_column);
  Override(arguments.samples, &settings.evaluation_samples);
  Override(arguments.temperature, &settings.sampling.temperature);
  Override(arguments.max_new_tokens, &settings.sampling.max_new_tokens);
  Override(arguments.seed, &settings.seed);
  settings.rollout_dtype = arguments.engine.dtype_or(settings.rollout_dtype);
  settings.fp32.residual |= arguments.engine.fp32.residual;
  settings.fp32.head |= arguments.engine.fp32.head;
  HALFSTEP_RETURN_IF_ERROR(OverrideReward(arguments, &evaluated.reward));
  return evaluated;
}

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

void PrintJson(const Evaluated& evaluated, const JobInputs& inputs,
               const LocalEvaluation& evaluation, std::ostream& out) {
  const EvaluationResult& result = evaluation.result;
  const Details details = DetailsOf(evaluation);
  const Json object = {{"model", evaluated.settings.model_directory},
                       {"data", evaluated.settings.eval_path},
                       {"accuracy", result.accuracy},
                       {"greedy", result.greedy},
                       {"prompts", result.prompts},
                       {"prompts_skipped", inputs.eval->skipped()},
                       {"samples", result.samples},
                       {"temperature", evaluated.settings.sampling.temperature},
                       {"seed", evaluated.settings.seed},
                       {"precision", Name(evaluated.settings.rollout_dtype)},
                       {"fp32_residual", evaluated.settings.fp32.residual},
                       {"fp32_head", evaluated.settings.fp32.head},
                       {"unscored", Json(details.unscored)},
                       {"truncated", details.truncated},
                       {"mean_length", details.mean_length},
                       {"tokens", result.tokens},
                       {"seconds", absl::ToDoubleSeconds(result.time)},
                       {"tokens_per_second", TokensPerSecond(result)}};
  out << object.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl;
}

void PrintForPeople(const Evaluated& evaluated, const JobInputs& inputs,
                    const LocalEvaluation& evaluation, std::ostream& out) {
  const EvaluationResult& result = evaluation.result;
  const Details details = DetailsOf(evaluation);
  const int64_t responses = static_cast<int64_t>(evaluation.trajectories.size());
  std::vector<std::vector<std::string>> rows = {
      {absl::StrFormat("temperature %g", evaluated.settings.sampling.temperature),
       absl::StrCat(Percent(result.accuracy), " with ", result.samples,
                    result.samples == 1 ? " sample each" : " samples each")},
      {"greedy", Percent(result.greedy)},
      {"prompts", absl::StrCat(result.prompts, " of ", evaluated.settings.eval_path)}};
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
  HALFSTEP_ASSIGN_OR_RETURN(const Evaluated evaluated, Settings(arguments));
  HALFSTEP_RETURN_IF_ERROR(CheckSamplesFile(arguments.samples_file));
  HALFSTEP_ASSIGN_OR_RETURN(std::shared_ptr<const Verifier> verifier,
                            MakeVerifier(evaluated.reward));
  HALFSTEP_ASSIGN_OR_RETURN(const JobInputs inputs, LoadEvaluationInputs(evaluated.settings));

  LocalEvaluation evaluation;
  {
    ProgressBar bar(&context.err, isatty(STDERR_FILENO) == 1);
    const absl::Time start = absl::Now();
    LocalEvaluationOptions options;
    options.point.step = arguments.step;
    options.threads = arguments.engine.threads;
    options.on_progress = [&](int64_t done, int64_t total) {
      std::optional<absl::Duration> left;
      if (done > 0) left = (absl::Now() - start) * static_cast<double>(total - done) / done;
      bar.Draw(done, total, left);
      return !context.signal->requested();
    };
    HALFSTEP_ASSIGN_OR_RETURN(
        evaluation, EvaluateHere(evaluated.settings, inputs, std::move(verifier), options));
  }
  if (!arguments.samples_file.empty()) {
    HALFSTEP_RETURN_IF_ERROR(
        WriteFileAtomic(arguments.samples_file, SamplesText(inputs, evaluation)));
  }
  if (context.format == OutputFormat::kJson) {
    PrintJson(evaluated, inputs, evaluation, context.out);
  } else {
    PrintForPeople(evaluated, inputs, evaluation, context.out);
  }
  return absl::OkStatus();
}

}  // namespace

void AddEvalCommand(CLI::App& app, CommandContext& context) {
  auto arguments = std::make_shared<EvalArguments>();
  CLI::App* verb = app.add_subcommand("eval", "Accuracy of a model folder on held-out prompts");
  verb->add_option("model", arguments->model, "Model folder (Hugging Face; default: the job's)");
  verb->add_option("--data", arguments->data, "JSONL file of prompts and answers");
  verb->add_option("--job", arguments->job,
                   "Job file that says everything else: the very evaluation of that job");
  verb->add_option("--root", arguments->root, "Folder that every path of the job is below")
      ->capture_default_str();
  verb->add_option("--prompt-column", arguments->prompt_column,
                   "Column of the prompt (default: prompt)");
  verb->add_option("--answer-column", arguments->answer_column,
                   "Column of the answer (default: answer)");
  verb->add_option("--reward", arguments->reward, "How responses are scored (default: exact_match)")
      ->check(CLI::IsMember(YamlNames(*v1::RewardType_descriptor())))
      ->option_text("exact_match|numeric|regex");
  verb->add_option("--reward-pattern", arguments->reward_pattern,
                   "Regular expression that takes the answer out of a response");
  verb->add_option("--samples", arguments->samples, "Responses to each prompt (default: 4)")
      ->check(CLI::Range(1, 4096));
  verb->add_option("--temperature", arguments->temperature, "Of those (default: 1)")
      ->check(CLI::NonNegativeNumber);
  verb->add_option("--max-new-tokens", arguments->max_new_tokens, "Longest response (default: 128)")
      ->check(CLI::PositiveNumber);
  verb->add_option("--seed", arguments->seed, "Of all draws (default: 1)");
  verb->add_option("--step", arguments->step, "Draw as the job's evaluation after this step does")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  AddEngineFlags(*verb, arguments->engine);
  verb->add_option("--samples-file", arguments->samples_file,
                   "Write every response with its score to this file (JSONL)");
  AddFormatOption(*verb, context);
  verb->callback([arguments, &context] { context.Finish(Eval(*arguments, context)); });
}

}  // namespace halfstep
