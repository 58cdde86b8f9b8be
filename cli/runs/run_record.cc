// SPDX-License-Identifier: Apache-2.0
#include "cli/runs/run_record.h"

#include <cerrno>
#include <filesystem>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr size_t kMaxJobBytes = size_t{1} << 20;
constexpr char kJobFile[] = "/job.json";

absl::Status CorruptRun(const std::string& place, const std::string& what) {
  return Error(absl::StatusCode::kInvalidArgument, "CORRUPT_RUN",
               absl::StrCat(place, ": ", what, "; put the file back as the run wrote it"));
}

absl::Status NotARun(const std::string& path) {
  std::error_code ignored;
  const std::string inside = path + "/run";  // where demo puts its run
  return Error(
      absl::StatusCode::kInvalidArgument, "NOT_A_RUN",
      absl::StrCat(path, " is no run folder, for it has no job.json; give ",
                   fs::exists(inside + kJobFile, ignored) ? inside : "the output_dir of a job"));
}

absl::StatusOr<nlohmann::ordered_json> ReadJob(const std::string& run) {
  const std::string path = run + kJobFile;
  HALFSTEP_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxJobBytes));
  absl::StatusOr<nlohmann::ordered_json> job = ParseOrderedJson(text);
  if (!job.ok()) return CorruptRun(path, std::string(job.status().message()));
  if (!job->is_object()) return CorruptRun(path, "it is not an object");
  return job;
}

bool IsEvaluationKey(const std::string& key) {
  return absl::StartsWith(key, "eval_") || key == "time_evaluate";
}

void AddValue(const std::string& key, const Json& value, MetricTable* table) {
  const int64_t step = table->last_step;
  if (value.is_number()) {
    table->numbers[key].push_back({step, value.get<double>()});
  } else if (value.is_null()) {
    table->numbers[key].push_back({step, std::numeric_limits<double>::quiet_NaN()});
  } else {
    table->texts[key].push_back(
        {step, value.is_string() ? value.get<std::string>() : value.dump()});
  }
}

// Begins a line of `step`; whether it comes after the ones before.
bool BeginLine(int64_t step, MetricTable* table) {
  if (step <= table->last_step) return false;
  table->last_step = step;
  ++table->lines;
  return true;
}

// A step, an evaluation, or, as older versions wrote them, both in one.
absl::Status AddLine(const Json& line, int64_t step, const JsonLineReader& reader, RunRecord* run) {
  const bool evaluated = line.contains("eval_accuracy");
  const bool stepped = !evaluated || line.contains("policy_version");
  const int64_t last = stepped ? run->steps.last_step : run->evaluations.last_step;
  if ((stepped && !BeginLine(step, &run->steps)) ||
      (evaluated && !BeginLine(step, &run->evaluations))) {
    return reader.Corrupt(absl::StrCat("step ", step, " comes after step ", last));
  }
  for (const auto& [key, value] : line.items()) {
    if (key == "step") continue;
    const bool of_evaluation = evaluated && (!stepped || IsEvaluationKey(key));
    AddValue(key, value, of_evaluation ? &run->evaluations : &run->steps);
  }
  return absl::OkStatus();
}

absl::Status ReadMetrics(const std::string& path, RunRecord* run) {
  absl::StatusOr<JsonLineReader> reader = JsonLineReader::Open(path);
  if (absl::IsNotFound(reader.status())) return absl::OkStatus();
  HALFSTEP_RETURN_IF_ERROR(reader.status());
  while (true) {
    HALFSTEP_ASSIGN_OR_RETURN(const std::optional<Json> line, reader->Next());
    if (!line) return absl::OkStatus();
    const auto found = line->find("step");
    if (found == line->end() || !found->is_number_integer()) {
      return reader->Corrupt("it has no step");
    }
    HALFSTEP_RETURN_IF_ERROR(AddLine(*line, found->get<int64_t>(), *reader, run));
  }
}

void FlattenInto(const nlohmann::ordered_json& value, const std::string& path,
                 std::vector<std::pair<std::string, std::string>>* out) {
  if (!value.is_object() || value.empty()) {
    out->emplace_back(path, value.is_string() ? value.get<std::string>() : value.dump());
    return;
  }
  for (const auto& [key, child] : value.items()) {
    FlattenInto(child, path.empty() ? key : absl::StrCat(path, ".", key), out);
  }
}

}  // namespace

absl::StatusOr<JsonLineReader> JsonLineReader::Open(const std::string& path) {
  std::error_code error;
  if (!fs::exists(path, error)) return FileError(ENOENT, "open", path);
  std::ifstream file(path, std::ios::binary);
  if (!file) return FileError(errno, "open", path);
  return JsonLineReader(path, std::move(file));
}

absl::StatusOr<std::optional<std::string>> JsonLineReader::NextText() {
  std::string text;
  if (!std::getline(file_, text)) {
    if (file_.bad()) return FileError(EIO, "read", path_);
    return std::nullopt;
  }
  ++line_;
  offset_ += static_cast<int64_t>(text.size()) + (file_.eof() ? 0 : 1);
  return text;
}

absl::StatusOr<std::optional<Json>> JsonLineReader::Next() {
  HALFSTEP_ASSIGN_OR_RETURN(const std::optional<std::string> text, NextText());
  if (!text) return std::nullopt;
  absl::StatusOr<Json> json = ParseJson(*text);
  if (json.ok() && json->is_object()) return *std::move(json);
  if (file_.eof()) return std::nullopt;
  return Corrupt(json.ok() ? "it is not an object" : std::string(json.status().message()));
}

absl::Status JsonLineReader::Corrupt(const std::string& what) const {
  return CorruptRun(absl::StrCat(path_, ":", line_), what);
}

void JsonLineReader::GoTo(const Place& place) {
  file_.clear();
  file_.seekg(place.offset);
  offset_ = place.offset;
  line_ = place.line;
}

absl::StatusOr<RunRecord> ReadRun(const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    return Error(absl::StatusCode::kNotFound, "RUN_NOT_FOUND",
                 absl::StrCat("there is no folder ", path, "; give the output_dir of a job"));
  }
  RunRecord run;
  run.path = path;
  absl::StatusOr<nlohmann::ordered_json> job = ReadJob(path);
  if (absl::IsNotFound(job.status())) return NotARun(path);
  HALFSTEP_RETURN_IF_ERROR(job.status());
  run.job = *std::move(job);
  HALFSTEP_RETURN_IF_ERROR(ReadMetrics(path + "/metrics.jsonl", &run));
  return run;
}

std::string SamplesPathOf(const std::string& run) { return run + "/samples.jsonl"; }

std::optional<int64_t> LeadingStep(const std::string& line) {
  absl::string_view rest = line;
  int64_t step = 0;
  if (!absl::ConsumePrefix(&rest, "{\"step\":") ||
      !absl::SimpleAtoi(rest.substr(0, rest.find(',')), &step)) {
    return std::nullopt;
  }
  return step;
}

std::vector<std::pair<std::string, std::string>> FlattenJob(const nlohmann::ordered_json& job) {
  std::vector<std::pair<std::string, std::string>> values;
  if (!job.empty()) FlattenInto(job, "", &values);
  return values;
}

}  // namespace halfstep
