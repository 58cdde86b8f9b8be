// SPDX-License-Identifier: Apache-2.0
#include "cli/perfectible_prompts.h"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <span>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

// Responses that are in memory at once; many times what the engine runs at once, so that it is
// seldom short of work.
constexpr int64_t kResponsesAtOnce = 4096;

// The accuracy of one prompt's responses, which are counted.
double Count(std::span<const Trajectory> responses, PerfectiblePrompts* result) {
  double sum = 0;
  for (const Trajectory& response : responses) {
    result->tokens += static_cast<int64_t>(response.sample.tokens.size());
    result->truncated += response.sample.finish_reason == FinishReason::kLength;
    if (response.reward.outcome == RewardOutcome::kScore) {
      sum += response.reward.score;
      continue;
    }
    ++result->unscored[Name(response.reward.outcome)];
    if (result->unscored_example.empty()) result->unscored_example = response.reward.detail;
  }
  return sum / static_cast<double>(responses.size());
}

void Sort(double accuracy, int64_t line, const AccuracyRange& range, PerfectiblePrompts* result) {
  const double tenth = std::clamp(accuracy, 0.0, 1.0) * static_cast<double>(kAccuracyBins);
  ++result->histogram[std::min(static_cast<size_t>(tenth), kAccuracyBins - 1)];
  if (accuracy < range.low) {
    ++result->below;
  } else if (accuracy > range.high) {
    ++result->above;
  } else {
    result->kept.push_back(line);
  }
}

absl::Status NothingKept(const JobSettings& settings, const PerfectiblePrompts& result,
                         const AccuracyRange& range) {
  return Error(absl::StatusCode::kFailedPrecondition, "NO_PROMPT_KEPT",
               absl::StrFormat("of %d prompts of %s none has an accuracy from %g to %g: %d are "
                               "below and %d above; %s",
                               result.sampled(), settings.eval_path, range.low, range.high,
                               result.below, result.above,
                               result.below > result.above
                                   ? "give easier prompts or a better model, check --reward and "
                                     "--max-new-tokens, or lower --accuracy"
                                   : "give harder prompts, or raise --accuracy"));
}

}  // namespace

absl::StatusOr<AccuracyRange> ParseAccuracyRange(const std::string& text) {
  const std::vector<std::string> ends = absl::StrSplit(text, ',');
  AccuracyRange range;
  if (ends.size() == 2 && absl::SimpleAtod(ends[0], &range.low) &&
      absl::SimpleAtod(ends[1], &range.high) && 0 <= range.low && range.low <= range.high &&
      range.high <= 1) {
    return range;
  }
  return Error(absl::StatusCode::kInvalidArgument, "BAD_ACCURACY_RANGE",
               absl::StrCat("'", text,
                            "' is no range of accuracies; write LOW,HIGH between 0 and 1, such as "
                            "0.2,0.8"));
}

absl::StatusOr<PerfectiblePrompts> FindPerfectiblePrompts(const JobSettings& settings,
                                                          const JobInputs& inputs,
                                                          std::shared_ptr<const Verifier> verifier,
                                                          const PerfectibleOptions& options) {
  const int64_t samples = settings.evaluation_samples;
  const int64_t prompts = inputs.eval->size();
  const int64_t at_once = std::min(prompts, std::max<int64_t>(1, kResponsesAtOnce / samples));
  // Sampled groups come first, in the order of the prompts; the greedy ones are not wanted.
  std::vector<GroupTask> tasks =
      EvaluationTasks(settings, inputs.model.config.max_positions, *inputs.eval, {});
  HALFSTEP_ASSIGN_OR_RETURN(
      const auto sampler,
      LocalSampler::Start(settings, inputs, std::move(verifier),
                          {.threads = options.threads, .samples = at_once * samples}));
  PerfectiblePrompts result;
  double sum = 0;
  const auto full = [&] {
    return options.limit > 0 && static_cast<int64_t>(result.kept.size()) == options.limit;
  };
  for (int64_t first = 0; first < prompts && !full(); first += at_once) {
    const int64_t end = std::min(prompts, first + at_once);
    HALFSTEP_ASSIGN_OR_RETURN(const std::vector<Trajectory> responses,
                              sampler->Collect({std::make_move_iterator(tasks.begin() + first),
                                                std::make_move_iterator(tasks.begin() + end)},
                                               [&](int64_t done, int64_t) {
                                                 return options.on_progress(first * samples + done,
                                                                            prompts * samples);
                                               }));
    for (int64_t i = first; i < end && !full(); ++i) {
      const auto group = std::span(responses).subspan(static_cast<size_t>((i - first) * samples),
                                                      static_cast<size_t>(samples));
      const double accuracy = Count(group, &result);
      Sort(accuracy, inputs.eval->row(i).line, options.range, &result);
      sum += accuracy;
    }
  }
  result.mean_accuracy = sum / static_cast<double>(result.sampled());
  if (result.kept.empty()) return NothingKept(settings, result, options.range);
  return result;
}

absl::StatusOr<std::string> LinesOfFile(const std::string& path,
                                        const std::vector<int64_t>& lines) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return FileError(errno, "open", path);
  std::string text, line;
  auto wanted = lines.begin();
  for (int64_t number = 1; wanted != lines.end() && std::getline(file, line); ++number) {
    if (number != *wanted) continue;
    absl::StrAppend(&text, line, "\n");
    ++wanted;
  }
  if (wanted == lines.end()) return text;
  return Error(absl::StatusCode::kInvalidArgument, "DATASET_CHANGED",
               absl::StrCat(path, " has no line ", *wanted,
                            " any more; it was changed meanwhile, start again"));
}

}  // namespace halfstep
