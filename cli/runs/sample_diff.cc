// SPDX-License-Identifier: Apache-2.0
#include "cli/runs/sample_diff.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/runs/run_record.h"
#include "common/base/status_macros.h"
#include "learner_server/training/replay_log.h"
#include "learner_server/training/run_folder.h"

namespace halfstep {
namespace {

using Json = nlohmann::json;

int64_t IntegerOf(const Json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_number_integer() ? found->get<int64_t>() : -1;
}

SampleDifference At(const Json& line) {
  SampleDifference difference;
  difference.step = IntegerOf(line, "step");
  difference.group = IntegerOf(line, "group");
  difference.index = IntegerOf(line, "index");
  return difference;
}

std::string Place(const std::optional<Json>& line) {
  if (!line) return "none";
  const SampleDifference at = At(*line);
  return absl::StrCat("step ", at.step, ", group ", at.group, ", sample ", at.index);
}

bool SamePlace(const Json& a, const Json& b) {
  const SampleDifference x = At(a), y = At(b);
  return x.step == y.step && x.group == y.group && x.index == y.index;
}

const Json& ValueOf(const Json& line, const char* key) {
  static const Json* const kNone = new Json();
  const auto found = line.find(key);
  return found == line.end() ? *kNone : *found;
}

std::string Shown(const Json& value) {
  if (value.is_null()) return "none";
  return value.is_string() ? value.get<std::string>() : value.dump();
}

float LogProb(const Json& value) {
  return value.is_number() ? static_cast<float>(value.get<double>())
                           : std::numeric_limits<float>::quiet_NaN();
}

std::string ShownLogProb(float value) {
  return absl::StrFormat("%.9g (0x%08x)", value, std::bit_cast<uint32_t>(value));
}

// The first place in which two lists differ, the end of the shorter one included.
template <class Equal>
std::optional<size_t> FirstUnequal(const Json& a, const Json& b, const Equal& equal) {
  const size_t common = std::min(a.size(), b.size());
  for (size_t i = 0; i < common; ++i) {
    if (!equal(a[i], b[i])) return i;
  }
  if (a.size() != b.size()) return common;
  return std::nullopt;
}

bool DiffTokens(const Json& a, const Json& b, SampleDifference* difference) {
  const Json& tokens_a = ValueOf(a, "tokens");
  const Json& tokens_b = ValueOf(b, "tokens");
  if (tokens_a == tokens_b) return false;
  difference->what = "tokens";
  if (!tokens_a.is_array() || !tokens_b.is_array()) {
    difference->a = Shown(tokens_a);
    difference->b = Shown(tokens_b);
    return true;
  }
  const size_t token = *FirstUnequal(tokens_a, tokens_b, std::equal_to<Json>());
  difference->token = static_cast<int64_t>(token);
  difference->a = token < tokens_a.size() ? tokens_a[token].dump() : "the end";
  difference->b = token < tokens_b.size() ? tokens_b[token].dump() : "the end";
  return true;
}

bool DiffLogProbs(const Json& a, const Json& b, SampleDifference* difference) {
  const Json& log_probs_a = ValueOf(a, "log_probs");
  const Json& log_probs_b = ValueOf(b, "log_probs");
  if (!log_probs_a.is_array() || !log_probs_b.is_array()) return false;
  const auto same_bits = [](const Json& x, const Json& y) {
    return std::bit_cast<uint32_t>(LogProb(x)) == std::bit_cast<uint32_t>(LogProb(y));
  };
  const std::optional<size_t> token = FirstUnequal(log_probs_a, log_probs_b, same_bits);
  if (!token) return false;
  difference->what = "log_probs";
  difference->token = static_cast<int64_t>(*token);
  const auto shown = [&token](const Json& values) {
    return *token < values.size() ? ShownLogProb(LogProb(values[*token])) : std::string("the end");
  };
  difference->a = shown(log_probs_a);
  difference->b = shown(log_probs_b);
  return true;
}

bool DiffKey(const char* key, const Json& a, const Json& b, SampleDifference* difference) {
  const Json& value_a = ValueOf(a, key);
  const Json& value_b = ValueOf(b, key);
  if (value_a == value_b) return false;
  difference->what = key;
  difference->a = Shown(value_a);
  difference->b = Shown(value_b);
  return true;
}

// Two lines of one sample.
std::optional<SampleDifference> DiffSample(const Json& a, const Json& b) {
  SampleDifference difference = At(a);
  for (const char* key : {"row", "versions"}) {
    if (DiffKey(key, a, b, &difference)) return difference;
  }
  if (DiffTokens(a, b, &difference) || DiffLogProbs(a, b, &difference)) return difference;
  for (const char* key : {"finish_reason", "outcome", "reward", "detail", "advantage"}) {
    if (DiffKey(key, a, b, &difference)) return difference;
  }
  return std::nullopt;
}

// The samples of a run as lines of samples.jsonl, in order; nothing at the end.
using Lines = std::function<absl::StatusOr<std::optional<Json>>()>;

absl::StatusOr<Lines> SavedSamples(const std::string& run) {
  HALFSTEP_ASSIGN_OR_RETURN(JsonLineReader reader, JsonLineReader::Open(SamplesPathOf(run)));
  auto shared = std::make_shared<JsonLineReader>(std::move(reader));
  return [shared] { return shared->Next(); };
}

Json LineOf(int64_t step, const Trajectory& trajectory) {
  Json versions = Json::array();
  for (const VersionRun& run : trajectory.sample.versions) {
    versions.push_back({{"version", run.version}, {"tokens", run.count}});
  }
  Json line{{"step", step},
            {"group", trajectory.key.ordinal},
            {"index", trajectory.sample.index},
            {"versions", std::move(versions)},
            {"tokens", trajectory.sample.tokens},
            {"log_probs", trajectory.sample.log_probs},
            {"outcome", Name(trajectory.reward.outcome)}};
  if (trajectory.reward.outcome == RewardOutcome::kScore) line["reward"] = trajectory.reward.score;
  return line;
}

// Those that a run with batch.max_lag trained.
absl::StatusOr<Lines> LoggedSamples(const std::string& run) {
  struct Position {
    ReplayLogReader log;
    ReplayBatch batch;
    size_t next = 0;  // of the batch
  };
  HALFSTEP_ASSIGN_OR_RETURN(ReplayLogReader log,
                            ReplayLogReader::Open(run + "/" + RunFolder::kReplayLogName));
  auto at = std::make_shared<Position>(Position{std::move(log), {}, 0});
  return [at]() -> absl::StatusOr<std::optional<Json>> {
    while (at->next == at->batch.trajectories.size()) {
      HALFSTEP_ASSIGN_OR_RETURN(ReplayLogReader::Record record, at->log.Next());
      if (std::holds_alternative<std::monostate>(record)) return std::nullopt;
      auto* batch = std::get_if<ReplayBatch>(&record);
      at->batch = batch == nullptr ? ReplayBatch() : std::move(*batch);
      at->next = 0;
    }
    return LineOf(at->batch.step, at->batch.trajectories[at->next++]);
  };
}

}  // namespace

absl::StatusOr<SampleComparison> DiffSamples(const std::string& run_a, const std::string& run_b) {
  SampleComparison comparison;
  absl::StatusOr<Lines> a = SavedSamples(run_a);
  absl::StatusOr<Lines> b = SavedSamples(run_b);
  if (absl::IsNotFound(a.status()) || absl::IsNotFound(b.status())) {
    a = LoggedSamples(run_a);
    b = LoggedSamples(run_b);
  }
  if (absl::IsNotFound(a.status()) || absl::IsNotFound(b.status())) return comparison;
  HALFSTEP_RETURN_IF_ERROR(a.status());
  HALFSTEP_RETURN_IF_ERROR(b.status());
  comparison.compared = true;
  while (!comparison.first) {
    HALFSTEP_ASSIGN_OR_RETURN(const std::optional<Json> line_a, (*a)());
    HALFSTEP_ASSIGN_OR_RETURN(const std::optional<Json> line_b, (*b)());
    if (!line_a && !line_b) break;
    if (line_a && line_b && SamePlace(*line_a, *line_b)) {
      comparison.first = DiffSample(*line_a, *line_b);
      if (!comparison.first) ++comparison.samples;
      continue;
    }
    // The one that comes earlier is what the other lacks.
    const bool at_a =
        line_a && (!line_b || IntegerOf(*line_a, "step") <= IntegerOf(*line_b, "step"));
    comparison.first = At(at_a ? *line_a : *line_b);
    comparison.first->what = "sample";
    comparison.first->a = Place(line_a);
    comparison.first->b = Place(line_b);
  }
  return comparison;
}

}  // namespace halfstep
