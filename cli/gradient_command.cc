// SPDX-License-Identifier: Apache-2.0
// gradient-bias: what corrections of the rollout's policy do to the policy gradient.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/engine_flags.h"
#include "cli/evaluation_flags.h"
#include "cli/gradient_report.h"
#include "cli/gradient_study.h"
#include "cli/stage_progress.h"
#include "common/base/status_macros.h"
#include "common/config/enum_names.h"
#include "halfstep/v1/training_job.pb.h"
#include "learner_server/algorithm/override.h"

namespace halfstep {
namespace {

struct GradientArguments {
  JobSettings settings;
  std::string rollout_model;
  std::string reward = "exact_match";
  std::optional<std::string> reward_pattern;
  std::vector<std::string> cells = {"fp16/fp16", "bf16/bf16"};
  std::vector<std::string> corrections;  // empty: every one
  GradientStudyOptions study;
};

constexpr DType kPrecisions[] = {DType::kFloat16, DType::kBFloat16, DType::kFloat32};

// "fp16/bf16": the rollout's and the learner's.
std::map<std::string, GradientCell> CellsByName() {
  std::map<std::string, GradientCell> cells;
  for (const DType rollout : kPrecisions) {
    for (const DType learner : kPrecisions) {
      cells[absl::StrCat(Name(rollout), "/", Name(learner))] = {rollout, learner};
    }
  }
  return cells;
}

std::vector<std::string> NamesOf(const std::map<std::string, GradientCell>& cells) {
  std::vector<std::string> names;
  for (const auto& [name, cell] : cells) names.push_back(name);
  return names;
}

std::vector<std::string> CorrectionNames() {
  std::vector<std::string> names;
  for (const CorrectionKind kind : AllCorrections()) names.emplace_back(Name(kind));
  return names;
}

absl::StatusOr<std::unique_ptr<const Verifier>> MakeVerifierOf(const GradientArguments& arguments) {
  v1::RewardSpec reward;
  HALFSTEP_RETURN_IF_ERROR(OverrideReward(arguments.reward, arguments.reward_pattern, &reward));
  return MakeVerifier(reward);
}

GradientStudyOptions StudyOptions(const GradientArguments& arguments) {
  GradientStudyOptions options = arguments.study;
  const std::map<std::string, GradientCell> cells = CellsByName();
  for (const std::string& name : arguments.cells) options.cells.push_back(cells.at(name));
  for (const CorrectionKind kind : AllCorrections()) {
    const auto& wanted = arguments.corrections;
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), Name(kind)) != wanted.end()) {
      options.corrections.push_back(DefaultCorrection(kind));
    }
  }
  return options;
}

absl::Status MeasureGradients(const GradientArguments& arguments, CommandContext& context) {
  HALFSTEP_ASSIGN_OR_RETURN(const std::shared_ptr<const Verifier> verifier,
                            MakeVerifierOf(arguments));
  HALFSTEP_ASSIGN_OR_RETURN(const JobInputs inputs, LoadEvaluationInputs(arguments.settings));
  GradientStudyOptions options = StudyOptions(arguments);
  std::optional<LocalModel> rollout;
  if (!arguments.rollout_model.empty()) {
    HALFSTEP_ASSIGN_OR_RETURN(rollout, OpenLocalModel(arguments.rollout_model));
    options.rollout_model = &*rollout;
  }
  GradientReport report;
  {
    StageProgress progress(&context);
    options.on_progress = [&progress](const std::string& stage, int64_t done, int64_t total) {
      return progress.Tell(stage, done, total);
    };
    HALFSTEP_ASSIGN_OR_RETURN(report.results,
                              StudyGradients(arguments.settings, inputs, verifier, options));
  }
  report.model = arguments.settings.model_directory;
  report.rollout_model = arguments.rollout_model;
  report.data = arguments.settings.eval_path;
  report.skipped = inputs.eval->skipped();
  report.profile = options.profile;
  report.fp32 = arguments.settings.fp32;
  report.temperature = arguments.settings.sampling.temperature;
  report.seed = arguments.settings.seed;
  report.batches = options.batches;
  report.prompts = options.prompts;
  report.samples = options.samples;
  if (context.format == OutputFormat::kJson) {
    context.out << GradientsToJson(report).dump(-1, ' ', false,
                                                nlohmann::ordered_json::error_handler_t::replace)
                << std::endl;
  } else {
    PrintGradients(report, context.out);
  }
  return absl::OkStatus();
}

void AddDataOptions(CLI::App& verb, GradientArguments& arguments) {
  JobSettings& settings = arguments.settings;
  settings.prompt_column = "prompt";
  settings.target_column = "answer";
  settings.overlong = OverlongPolicy::kSkip;
  verb.add_option("model", settings.model_directory, "Model folder (Hugging Face)")->required();
  verb.add_option("--data", settings.eval_path, "JSONL file of prompts and answers")->required();
  verb.add_option("--prompt-column", settings.prompt_column, "Column of the prompt")
      ->capture_default_str();
  verb.add_option("--answer-column", settings.target_column, "Column of the answer")
      ->capture_default_str();
  verb.add_option("--reward", arguments.reward, "How responses are scored")
      ->check(CLI::IsMember(YamlNames(*v1::RewardType_descriptor())))
      ->option_text("exact_match|numeric|regex (default: exact_match)");
  verb.add_option("--reward-pattern", arguments.reward_pattern,
                  "Regular expression that takes the answer out of a response");
  verb.add_option("--temperature", settings.sampling.temperature, "Of the policy")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb.add_option("--max-new-tokens", settings.sampling.max_new_tokens, "Longest response")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb.add_option("--seed", settings.seed, "Of all draws")->capture_default_str();
}

}  // namespace

void AddGradientBiasCommand(CLI::App& app, CommandContext& context) {
  static const std::map<std::string, Profile> profiles = {{"fast", Profile::kFast},
                                                          {"bitwise", Profile::kBitwise}};
  auto arguments = std::make_shared<GradientArguments>();
  CLI::App* verb = app.add_subcommand(
      "gradient-bias",
      "Bias and variance of the policy gradient under each correction of the rollout's policy");
  AddDataOptions(*verb, *arguments);
  GradientStudyOptions& study = arguments->study;
  verb->add_option("--cells", arguments->cells,
                   "Precisions of rollout and learner (default: fp16/fp16,bf16/bf16)")
      ->delimiter(',')
      ->check(CLI::IsMember(NamesOf(CellsByName())))
      ->option_text("ROLLOUT/LEARNER,...");
  verb->add_option("--corrections", arguments->corrections, "Which (default: every one)")
      ->delimiter(',')
      ->check(CLI::IsMember(CorrectionNames()))
      ->option_text("NAME,...");
  verb->add_option("--profile", study.profile, "Of the rollout's engine (default: fast)")
      ->transform(CLI::CheckedTransformer(profiles))
      ->option_text("fast|bitwise");
  verb->add_option("--rollout-model", arguments->rollout_model,
                   "Folder whose weights sample, such as an older checkpoint (default: MODEL)");
  verb->add_option("--batches", study.batches, "Independent batches; more narrow the intervals")
      ->check(CLI::Range(3, 100000))
      ->capture_default_str();
  verb->add_option("--batch-prompts", study.prompts, "Prompts of a batch, drawn from the data")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb->add_option("--samples", study.samples, "Responses to each")
      ->check(CLI::Range(2, 4096))
      ->capture_default_str();
  AddFp32Flags(*verb, arguments->settings.fp32);
  verb->add_option("--threads", study.threads, "Of the engines (default: one per core)")
      ->check(CLI::Range(1, 1024));
  AddFormatOption(*verb, context);
  verb->callback([arguments, &context] { context.Finish(MeasureGradients(*arguments, context)); });
}

}  // namespace halfstep
