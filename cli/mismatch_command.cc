// SPDX-License-Identifier: Apache-2.0
// mismatch: how far the learner's engine is from the one that sampled, in the user's own model.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "cli/commands.h"
#include "cli/engine_flags.h"
#include "cli/mismatch_report.h"
#include "cli/mismatch_study.h"
#include "cli/stage_progress.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "learner_server/data/external_samples.h"

namespace halfstep {
namespace {

struct MismatchArguments {
  std::string model;
  std::string prompts_file;
  std::string prompt_column = "prompt";
  std::string external_file;
  bool matrix = false;
  DType rollout = DType::kFloat16;
  DType learner = DType::kFloat16;
  Profile profile = Profile::kFast;
  Fp32Parts fp32;
  SamplingParams sampling;
  uint32_t samples = 1;
  uint64_t seed = 1;
  int64_t seeds = 1;
  int64_t resamples = 1000;
  int threads = 0;
  std::string output;
};

std::vector<MismatchCell> CellsOf(const MismatchArguments& arguments) {
  if (arguments.matrix) return PrecisionMatrix();
  if (!arguments.external_file.empty()) return {{std::nullopt, arguments.learner}};
  return {{arguments.rollout, arguments.learner}};
}

// Found out before the work and not after it.
absl::Status MakeOutputFolder(const std::string& path) {
  if (path.empty()) return absl::OkStatus();
  std::error_code problem;
  std::filesystem::create_directories(path, problem);
  return problem ? FileError(problem.value(), "make --output", path) : absl::OkStatus();
}

absl::StatusOr<GenerateOrder> OrderOf(const MismatchArguments& arguments) {
  HALFSTEP_ASSIGN_OR_RETURN(const std::vector<PromptText> prompts,
                            ReadPromptFile(arguments.prompts_file, arguments.prompt_column));
  GenerateOrder order;
  // Each further seed is a further turn of the file, so no two draws are alike.
  for (int64_t i = 0; i < arguments.seeds; ++i) {
    order.prompts.insert(order.prompts.end(), prompts.begin(), prompts.end());
  }
  order.samples = arguments.samples;
  order.sampling = arguments.sampling;
  order.seed = arguments.seed;
  return order;
}

absl::StatusOr<std::vector<SampledSet>> Study(const MismatchArguments& arguments,
                                              CommandContext& context) {
  HALFSTEP_ASSIGN_OR_RETURN(const LocalModel model, OpenLocalModel(arguments.model));
  StageProgress progress(&context);
  MismatchStudyOptions options;
  options.cells = CellsOf(arguments);
  options.profile = arguments.profile;
  options.fp32 = arguments.fp32;
  options.threads = arguments.threads;
  options.on_progress = [&progress](const std::string& stage, int64_t done, int64_t total) {
    return progress.Tell(stage, done, total);
  };
  if (arguments.external_file.empty()) {
    HALFSTEP_ASSIGN_OR_RETURN(const GenerateOrder order, OrderOf(arguments));
    return SampleAndScore(model, order, options);
  }
  const ModelConfig& config = model.folder.config;
  HALFSTEP_ASSIGN_OR_RETURN(
      std::vector<TrainSequence> sequences,
      ReadExternalSamples(arguments.external_file, {.vocab_size = config.vocab_size,
                                                    .max_sequence_tokens = config.max_positions}));
  return ScoreExternal(model, std::move(sequences), arguments.sampling.temperature, options);
}

absl::Status WriteOutput(const MismatchReport& report, const std::string& folder) {
  if (folder.empty()) return absl::OkStatus();
  const nlohmann::ordered_json json = MismatchToJson(report, WithCurves::kYes);
  HALFSTEP_RETURN_IF_ERROR(WriteFileAtomic(
      folder + "/mismatch.json",
      json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n"));
  return WriteFileAtomic(folder + "/mismatch.html", MismatchPage(report));
}

absl::Status Mismatch(const MismatchArguments& arguments, CommandContext& context) {
  if (arguments.prompts_file.empty() && arguments.external_file.empty()) {
    return absl::InvalidArgumentError(
        "nothing to compare; give --prompts FILE.jsonl, or --external FILE.jsonl with what another "
        "engine generated");
  }
  HALFSTEP_RETURN_IF_ERROR(MakeOutputFolder(arguments.output));
  HALFSTEP_ASSIGN_OR_RETURN(const std::vector<SampledSet> sets, Study(arguments, context));
  const bool external = !arguments.external_file.empty();
  MismatchReport report;
  report.model = arguments.model;
  report.source = external ? arguments.external_file : arguments.prompts_file;
  report.profile = arguments.profile;
  report.fp32 = arguments.fp32;
  report.temperature = arguments.sampling.temperature;
  report.samples = arguments.samples;
  report.seed = arguments.seed;
  report.seeds = arguments.seeds;
  report.resamples = arguments.resamples;
  report.results = AnalyzeMismatch(sets, CellsOf(arguments), arguments.seeds,
                                   {.resamples = arguments.resamples, .seed = arguments.seed});
  HALFSTEP_RETURN_IF_ERROR(WriteOutput(report, arguments.output));
  if (context.format == OutputFormat::kJson) {
    context.out << MismatchToJson(report, WithCurves::kNo)
                       .dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace)
                << std::endl;
  } else {
    PrintMismatch(report, context.out);
  }
  return absl::OkStatus();
}

CLI::Option* AddDType(CLI::App& verb, const std::string& name, DType& dtype,
                      const std::string& description) {
  static const std::map<std::string, DType> names = {{Name(DType::kFloat16), DType::kFloat16},
                                                     {Name(DType::kBFloat16), DType::kBFloat16},
                                                     {Name(DType::kFloat32), DType::kFloat32}};
  return verb.add_option(name, dtype, description)
      ->transform(CLI::CheckedTransformer(names))
      ->option_text("fp16|bf16|fp32");
}

// What --external leaves no choice about.
void AddSamplingOptions(CLI::App& verb, MismatchArguments& arguments, CLI::Option* external) {
  arguments.sampling.max_new_tokens = 0;
  verb.add_option("--prompts", arguments.prompts_file, "JSONL file of prompts")->excludes(external);
  verb.add_option("--prompt-column", arguments.prompt_column, "Its column that holds the prompt")
      ->capture_default_str();
  verb.add_option("--samples", arguments.samples, "Responses to each prompt")
      ->check(CLI::Range(1, 4096))
      ->excludes(external)
      ->capture_default_str();
  verb.add_option("--max-new-tokens", arguments.sampling.max_new_tokens,
                  "Longest response (default: 128, or what the model has room for)")
      ->check(CLI::PositiveNumber)
      ->excludes(external);
  verb.add_option("--seeds", arguments.seeds,
                  "So many times over, each time with further seeds; told apart in the JSON")
      ->check(CLI::Range(1, 1000))
      ->excludes(external)
      ->capture_default_str();
}

}  // namespace

void AddMismatchCommand(CLI::App& app, CommandContext& context) {
  static const std::map<std::string, Profile> profiles = {{"fast", Profile::kFast},
                                                          {"bitwise", Profile::kBitwise}};
  auto arguments = std::make_shared<MismatchArguments>();
  CLI::App* verb = app.add_subcommand(
      "mismatch", "How far the learner's log-probs of a model are from the rollout's");
  verb->add_option("model", arguments->model, "Model folder (Hugging Face)")->required();
  CLI::Option* external =
      verb->add_option("--external", arguments->external_file,
                       "In place of prompts: JSONL of prompt_ids, response_ids and log_probs that "
                       "another engine generated");
  AddSamplingOptions(*verb, *arguments, external);
  verb->add_option("--temperature", arguments->sampling.temperature,
                   "Of sampling, also that of --external (0: greedy)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--seed", arguments->seed,
                   "Of all draws, those of resampling included; prompt number n is drawn with seed "
                   "+ n - 1")
      ->capture_default_str();
  CLI::Option* matrix =
      verb->add_flag("--matrix", arguments->matrix, "All nine pairs of fp16, bf16 and fp32")
          ->excludes(external);
  AddDType(*verb, "--rollout-dtype", arguments->rollout, "Of the rollout (default: fp16)")
      ->excludes(matrix)
      ->excludes(external);
  AddDType(*verb, "--learner-dtype", arguments->learner, "Of the learner (default: fp16)")
      ->excludes(matrix);
  verb->add_option("--profile", arguments->profile, "Of both engines (default: fast)")
      ->transform(CLI::CheckedTransformer(profiles))
      ->option_text("fast|bitwise");
  AddFp32Flags(*verb, arguments->fp32);
  verb->add_option("--resamples", arguments->resamples, "For the intervals")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  verb->add_option("--threads", arguments->threads, "Of the engines (default: one per core)")
      ->check(CLI::Range(1, 1024));
  verb->add_option("--output", arguments->output,
                   "Folder for mismatch.json and mismatch.html, a page with charts");
  AddFormatOption(*verb, context);
  verb->callback([arguments, &context] { context.Finish(Mismatch(*arguments, context)); });
}

}  // namespace halfstep
