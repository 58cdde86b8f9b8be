// SPDX-License-Identifier: Apache-2.0
#include "cli/report/sample_excerpt.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

std::string TextOf(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

int64_t IntegerOf(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_integer() ? found->get<int64_t>() : 0;
}

std::string VersionsOf(const Json& line) {
  const auto found = line.find("versions");
  if (found == line.end() || !found->is_array()) return "";
  std::vector<std::string> runs;
  for (const Json& run : *found) {
    if (!run.is_object()) continue;
    runs.push_back(absl::StrCat(IntegerOf(run, "version")));
    if (found->size() > 1)
      absl::StrAppend(&runs.back(), " (", IntegerOf(run, "tokens"), " tokens)");
  }
  return absl::StrJoin(runs, ", ");
}

SampleRow RowOf(const Json& line) {
  SampleRow row;
  row.step = IntegerOf(line, "step");
  row.group = IntegerOf(line, "group");
  row.index = IntegerOf(line, "index");
  row.row = IntegerOf(line, "row");
  row.text = TextOf(line, "text");
  row.rollout = TextOf(line, "rollout");
  row.versions = VersionsOf(line);
  row.finish_reason = TextOf(line, "finish_reason");
  const auto tokens = line.find("tokens");
  if (tokens != line.end() && tokens->is_array()) row.tokens = static_cast<int64_t>(tokens->size());
  const auto reward = line.find("reward");
  if (reward != line.end() && reward->is_number()) {
    row.reward = absl::StrFormat("%g", reward->get<double>());
  } else {
    row.reward = absl::StrCat(TextOf(line, "outcome"), ": ", TextOf(line, "detail"));
  }
  const auto advantage = line.find("advantage");
  if (advantage != line.end() && advantage->is_number()) row.advantage = advantage->get<double>();
  return row;
}

// `most` of the indices below `count`, evenly spread, first and last among them.
std::vector<size_t> Spread(size_t count, size_t most) {
  std::vector<size_t> indices;
  if (count == 0) return indices;
  const size_t wanted = std::min(count, most);
  for (size_t i = 0; i < wanted; ++i) {
    indices.push_back(wanted == 1 ? 0 : i * (count - 1) / (wanted - 1));
  }
  return indices;
}

// Where each step's lines begin.
absl::StatusOr<std::vector<JsonLineReader::Place>> StepPlaces(JsonLineReader* reader,
                                                              int64_t* lines) {
  std::vector<JsonLineReader::Place> places;
  int64_t last = -1;
  while (true) {
    const JsonLineReader::Place place = reader->place();
    HALFSTEP_ASSIGN_OR_RETURN(const std::optional<std::string> text, reader->NextText());
    if (!text) return places;
    const std::optional<int64_t> step = LeadingStep(*text);
    if (!step) {
      // Either torn, being the last one, or an error.
      reader->GoTo(place);
      HALFSTEP_ASSIGN_OR_RETURN(const std::optional<Json> line, reader->Next());
      if (!line) return places;
      return reader->Corrupt("it does not begin with its step");
    }
    ++*lines;
    if (*step != last) places.push_back(place);
    last = *step;
  }
}

absl::Status AddStep(const JsonLineReader::Place& begin, size_t most, JsonLineReader* reader,
                     std::vector<SampleRow>* rows) {
  std::vector<JsonLineReader::Place> places;
  std::optional<int64_t> step;
  reader->GoTo(begin);
  while (true) {
    const JsonLineReader::Place place = reader->place();
    HALFSTEP_ASSIGN_OR_RETURN(const std::optional<std::string> text, reader->NextText());
    if (!text) break;
    const std::optional<int64_t> line_step = LeadingStep(*text);
    if (places.empty()) step = line_step;
    if (line_step != step) break;
    places.push_back(place);
  }
  for (const size_t i : Spread(places.size(), most)) {
    reader->GoTo(places[i]);
    HALFSTEP_ASSIGN_OR_RETURN(const std::optional<Json> line, reader->Next());
    if (line) rows->push_back(RowOf(*line));
  }
  return absl::OkStatus();
}

// The training data lies where the learner found it, when the run's folder still lies where the
// learner made it: both are relative to one root. Whatever does not fit costs only the prompts.
void AddPrompts(const RunRecord& run, std::vector<SampleRow>* rows) {
  const auto text = [&run](const std::string& pointer) {
    const nlohmann::ordered_json::json_pointer place(pointer);
    const bool is_text = run.job.contains(place) && run.job.at(place).is_string();
    return is_text ? run.job.at(place).get<std::string>() : std::string();
  };
  std::error_code error;
  const std::string folder = fs::canonical(run.path, error).string();
  const std::string suffix = "/" + fs::path(text("/output_dir")).lexically_normal().string();
  const std::string column = text("/data/columns/prompt");
  if (error || column.empty() || suffix == "/" || !absl::EndsWith(folder, suffix)) return;
  const fs::path root = folder.substr(0, folder.size() - suffix.size()) + "/";
  absl::StatusOr<JsonLineReader> reader =
      JsonLineReader::Open((root / text("/data/train")).string());
  if (!reader.ok()) return;
  std::multimap<int64_t, SampleRow*> missing;
  for (SampleRow& row : *rows) missing.emplace(row.row, &row);
  for (int64_t number = 1; !missing.empty(); ++number) {
    const absl::StatusOr<std::optional<Json>> line = reader->Next();
    if (!line.ok() || !line->has_value()) return;
    const auto [begin, end] = missing.equal_range(number);
    for (auto row = begin; row != end; ++row) row->second->prompt = TextOf(**line, column.c_str());
    missing.erase(missing.begin(), end);
  }
}

}  // namespace

absl::StatusOr<std::optional<SampleExcerpt>> ReadSampleExcerpt(const RunRecord& run,
                                                               const ExcerptSize& size) {
  absl::StatusOr<JsonLineReader> reader = JsonLineReader::Open(SamplesPathOf(run.path));
  if (absl::IsNotFound(reader.status())) return std::nullopt;
  HALFSTEP_RETURN_IF_ERROR(reader.status());
  SampleExcerpt excerpt;
  HALFSTEP_ASSIGN_OR_RETURN(const std::vector<JsonLineReader::Place> places,
                            StepPlaces(&*reader, &excerpt.lines));
  excerpt.steps = static_cast<int64_t>(places.size());
  for (const size_t step : Spread(places.size(), size.steps)) {
    HALFSTEP_RETURN_IF_ERROR(AddStep(places[step], size.samples, &*reader, &excerpt.rows));
  }
  AddPrompts(run, &excerpt.rows);
  return excerpt;
}

}  // namespace halfstep
