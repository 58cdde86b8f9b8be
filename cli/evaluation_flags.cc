// SPDX-License-Identifier: Apache-2.0
#include "cli/evaluation_flags.h"

#include <CLI/CLI.hpp>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/config/enum_names.h"
#include "common/config/load_spec.h"
#include "common/config/resolve_spec.h"

namespace halfstep {
namespace {

absl::StatusOr<EvaluationPlan> FromJob(const EvaluationFlags& flags) {
  v1::TrainingJobSpec spec;
  HALFSTEP_RETURN_IF_ERROR(LoadSpecFile(flags.job, &spec));
  ResolveSpec("eval", &spec);
  std::error_code problem;
  const std::string root = std::filesystem::canonical(flags.root, problem).string();
  if (problem) return FileError(problem.value(), "open --root", flags.root);
  EvaluationPlan plan;
  HALFSTEP_ASSIGN_OR_RETURN(plan.settings, MakeJobSettings(spec, root));
  plan.reward = spec.reward();
  return plan;
}

// The defaults of a job, but for prompts that are too long, which are counted.
EvaluationPlan WithoutJob() {
  EvaluationPlan plan;
  plan.settings.prompt_column = "prompt";
  plan.settings.target_column = "answer";
  plan.settings.evaluation_samples = 4;
  plan.settings.overlong = OverlongPolicy::kSkip;
  plan.reward.set_type(v1::REWARD_TYPE_EXACT_MATCH);
  return plan;
}

template <class From, class To>
void Override(const std::optional<From>& from, To* to) {
  if (from) *to = *from;
}

}  // namespace

absl::Status OverrideReward(const std::optional<std::string>& reward,
                            const std::optional<std::string>& pattern, v1::RewardSpec* spec) {
  if (reward) {
    spec->Clear();
    for (const v1::RewardType type :
         {v1::REWARD_TYPE_EXACT_MATCH, v1::REWARD_TYPE_NUMERIC, v1::REWARD_TYPE_REGEX}) {
      if (YamlName(type) == *reward) spec->set_type(type);
    }
  }
  if (pattern) spec->set_pattern(*pattern);
  if (spec->type() == v1::REWARD_TYPE_REGEX && spec->pattern().empty()) {
    return absl::InvalidArgumentError("--reward regex needs --reward-pattern");
  }
  return absl::OkStatus();
}

absl::StatusOr<EvaluationPlan> PlanEvaluation(const EvaluationFlags& flags) {
  EvaluationPlan plan = WithoutJob();
  if (!flags.job.empty()) {
    HALFSTEP_ASSIGN_OR_RETURN(plan, FromJob(flags));
  }
  JobSettings& settings = plan.settings;
  if (!flags.model.empty()) settings.model_directory = flags.model;
  if (!flags.data.empty()) settings.eval_path = flags.data;
  if (settings.eval_path.empty()) {
    return Error(absl::StatusCode::kInvalidArgument, "NO_EVAL_DATA",
                 absl::StrCat(flags.job, " names no data.eval; give --data FILE.jsonl"));
  }
  Override(flags.prompt_column, &settings.prompt_column);
  Override(flags.answer_column, &settings.target_column);
  Override(flags.samples, &settings.evaluation_samples);
  Override(flags.temperature, &settings.sampling.temperature);
  Override(flags.max_new_tokens, &settings.sampling.max_new_tokens);
  Override(flags.seed, &settings.seed);
  settings.rollout_dtype = flags.engine.dtype_or(settings.rollout_dtype);
  settings.fp32.residual |= flags.engine.fp32.residual;
  settings.fp32.head |= flags.engine.fp32.head;
  HALFSTEP_RETURN_IF_ERROR(OverrideReward(flags.reward, flags.reward_pattern, &plan.reward));
  return plan;
}

void AddEvaluationFlags(CLI::App& verb, EvaluationFlags& flags) {
  verb.add_option("--job", flags.job, "Job file that says everything else, as the job itself does");
  verb.add_option("--root", flags.root, "Folder that every path of the job is below")
      ->capture_default_str();
  verb.add_option("--prompt-column", flags.prompt_column, "Column of the prompt (default: prompt)");
  verb.add_option("--answer-column", flags.answer_column, "Column of the answer (default: answer)");
  verb.add_option("--reward", flags.reward, "How responses are scored (default: exact_match)")
      ->check(CLI::IsMember(YamlNames(*v1::RewardType_descriptor())))
      ->option_text("exact_match|numeric|regex");
  verb.add_option("--reward-pattern", flags.reward_pattern,
                  "Regular expression that takes the answer out of a response");
  verb.add_option("--temperature", flags.temperature, "Of sampled responses (default: 1)")
      ->check(CLI::NonNegativeNumber);
  verb.add_option("--max-new-tokens", flags.max_new_tokens, "Longest response (default: 128)")
      ->check(CLI::PositiveNumber);
  verb.add_option("--seed", flags.seed, "Of all draws (default: 1)");
  AddEngineFlags(verb, flags.engine);
}

}  // namespace halfstep
