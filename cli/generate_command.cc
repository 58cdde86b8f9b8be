// SPDX-License-Identifier: Apache-2.0
// generate: responses of a model folder, or of a running rollout server.
#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/engine_flags.h"
#include "cli/generator.h"
#include "cli/response_printer.h"
#include "common/base/shutdown_signal.h"
#include "common/base/status_macros.h"
#include "common/rpc/flags.h"

namespace halfstep {
namespace {

struct GenerateArguments {
  std::string model;
  ChannelOptions server;
  double timeout_seconds = 600;
  std::string prompt;
  std::string prompts_file;
  std::string prompt_column = "prompt";
  EngineFlags engine;
  SamplingParams sampling;
  bool greedy = false;
  uint32_t samples = 1;
  uint64_t seed = 1;
  bool log_probs = false;
};

absl::Status CheckSource(const GenerateArguments& arguments) {
  const bool local = !arguments.model.empty();
  if (local == !arguments.server.target.empty()) {
    return absl::InvalidArgumentError(
        local ? "a model folder and --server exclude each other; give one"
              : "nothing to generate with; name a model folder or --server HOST:PORT");
  }
  if (!local && arguments.engine.any()) {
    return absl::InvalidArgumentError(absl::StrCat(
        kEngineFlagNames, " are for a model folder; the server at --server has its own"));
  }
  if (arguments.prompt.empty() == arguments.prompts_file.empty()) {
    return absl::InvalidArgumentError(
        !arguments.prompt.empty() ? "--prompt and --prompts exclude each other; give one"
                                  : "no prompt; give --prompt TEXT or --prompts FILE.jsonl");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<PromptText>> ReadPrompts(const GenerateArguments& arguments) {
  if (!arguments.prompt.empty()) return std::vector<PromptText>{{arguments.prompt, ""}};
  return ReadPromptFile(arguments.prompts_file, arguments.prompt_column);
}

absl::StatusOr<std::unique_ptr<Generator>> MakeGenerator(const GenerateArguments& arguments) {
  if (!arguments.model.empty()) {
    HALFSTEP_ASSIGN_OR_RETURN(LocalModel model, OpenLocalModel(arguments.model));
    const EngineFlags& engine = arguments.engine;
    return std::make_unique<LocalGenerator>(
        std::move(model), LocalGeneratorOptions{.dtype = engine.dtype_or(DType::kFloat16),
                                                .fp32 = engine.fp32,
                                                .threads = engine.threads});
  }
  HALFSTEP_ASSIGN_OR_RETURN(auto channel, MakeChannel(arguments.server));
  return std::make_unique<ServerGenerator>(std::move(channel), arguments.server.target,
                                           absl::Seconds(arguments.timeout_seconds));
}

absl::Status Generate(const GenerateArguments& arguments, CommandContext& context) {
  HALFSTEP_RETURN_IF_ERROR(CheckSource(arguments));
  GenerateOrder order;
  HALFSTEP_ASSIGN_OR_RETURN(order.prompts, ReadPrompts(arguments));
  order.samples = arguments.samples;
  order.sampling = arguments.sampling;
  if (arguments.greedy) order.sampling.temperature = 0;
  order.seed = arguments.seed;
  HALFSTEP_ASSIGN_OR_RETURN(const auto generator, MakeGenerator(arguments));
  ResponsePrinter printer(&order, {context.format, arguments.log_probs}, &context.out);
  return generator->Generate(
      order, [&printer](const Piece& piece) { printer.OnPiece(piece); },
      [&context] { return !context.signal->requested(); });
}

void AddSamplingOptions(CLI::App& verb, GenerateArguments& arguments) {
  SamplingParams& sampling = arguments.sampling;
  sampling.max_new_tokens = 0;
  verb.add_option("--samples", arguments.samples, "Responses to each prompt")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  verb.add_option("--max-new-tokens", sampling.max_new_tokens,
                  "Longest response (default: 128, or what the model has room for)")
      ->check(CLI::PositiveNumber);
  CLI::Option* temperature = verb.add_option("--temperature", sampling.temperature, "0: greedy")
                                 ->check(CLI::NonNegativeNumber)
                                 ->capture_default_str();
  verb.add_flag("--greedy", arguments.greedy, "Always the most likely token")
      ->excludes(temperature);
  verb.add_option("--top-k", sampling.top_k, "Draw from the K most likely tokens (0: all)")
      ->check(CLI::NonNegativeNumber);
  verb.add_option("--top-p", sampling.top_p,
                  "Draw from the most likely tokens that have this probability together")
      ->check(CLI::PositiveNumber)
      ->check(CLI::Range(0.0, 1.0));
  verb.add_option("--min-p", sampling.min_p,
                  "Draw from tokens that have this share of the most likely one's probability")
      ->check(CLI::Range(0.0, 1.0));
  verb.add_option("--stop", sampling.stop_strings, "End a response with this text; may be repeated")
      ->allow_extra_args(false);
  verb.add_option("--seed", arguments.seed,
                  "The same one gives the same text; prompt number n of a file is drawn with seed "
                  "+ n - 1")
      ->capture_default_str();
}

}  // namespace

void AddGenerateCommand(CLI::App& app, CommandContext& context) {
  auto arguments = std::make_shared<GenerateArguments>();
  CLI::App* verb =
      app.add_subcommand("generate", "Responses of a model folder, or of a running rollout server");
  verb->add_option("model", arguments->model, "Model folder (Hugging Face)");
  verb->add_option("--prompt", arguments->prompt, "The prompt, as it is, without a chat template");
  verb->add_option("--prompts", arguments->prompts_file, "JSONL file of prompts");
  verb->add_option("--prompt-column", arguments->prompt_column, "Its column that holds the prompt")
      ->capture_default_str();
  AddSamplingOptions(*verb, *arguments);
  verb->add_flag("--log-probs", arguments->log_probs, "Show the log-prob of every token");
  AddEngineFlags(*verb, arguments->engine);
  verb->add_option("--server", arguments->server.target,
                   "In place of a model folder: address of a rollout server, host:port");
  verb->add_option("--timeout", arguments->timeout_seconds,
                   "Seconds the server may take for a prompt")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  AddChannelFlags(*verb, arguments->server, "server");
  AddFormatOption(*verb, context);
  verb->callback([arguments, &context] { context.Finish(Generate(*arguments, context)); });
}

}  // namespace halfstep
