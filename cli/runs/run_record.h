// SPDX-License-Identifier: Apache-2.0
// Reading a run folder (docs/run_folder.md), also one whose run goes on meanwhile and one that an
// older version wrote.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace halfstep {

// The objects of a JSON Lines file that may still be written: a last line without a newline that is
// not whole is left out. Movable; not thread-safe.
class JsonLineReader {
 public:
  // NOT_FOUND, reason FILE_NOT_FOUND, when there is no such file.
  static absl::StatusOr<JsonLineReader> Open(const std::string& path);

  // Nothing at the end. INVALID_ARGUMENT, reason CORRUPT_RUN, naming file and line, for a line that
  // is not an object.
  absl::StatusOr<std::optional<nlohmann::json>> Next();
  // The same without a look into the line.
  absl::StatusOr<std::optional<std::string>> NextText();
  // What Next says about the line that it read last, for a reader that misses something in it.
  absl::Status Corrupt(const std::string& what) const;

  int64_t line() const { return line_; }  // of what was read last, from 1
  // Where the next line begins; going back to it.
  struct Place {
    int64_t offset = 0;  // bytes
    int64_t line = 0;    // before it
  };
  Place place() const { return {offset_, line_}; }
  void GoTo(const Place& place);

 private:
  JsonLineReader(std::string path, std::ifstream file)
      : path_(std::move(path)), file_(std::move(file)) {}

  std::string path_;
  std::ifstream file_;
  int64_t line_ = 0;
  int64_t offset_ = 0;
};

struct MetricPoint {
  int64_t step = 0;
  double value = 0;  // NaN for what is null in the file: it was not finite
};
struct MetricText {
  int64_t step = 0;
  std::string text;
};
// By the names of metrics.jsonl, steps ascending. A line without a key has no point there.
struct MetricTable {
  int64_t lines = 0;
  int64_t last_step = -1;  // -1: no line
  std::map<std::string, std::vector<MetricPoint>> numbers;
  std::map<std::string, std::vector<MetricText>> texts;  // what is no number
};

struct RunRecord {
  std::string path;
  nlohmann::ordered_json job;  // resolved
  MetricTable steps;
  MetricTable evaluations;
};

// NOT_FOUND, reason RUN_NOT_FOUND, when there is no such folder. INVALID_ARGUMENT: reason NOT_A_RUN
// for a folder without job.json; reason CORRUPT_RUN, naming file and line, for contents that no
// run writes. A run without a finished step has empty tables.
absl::StatusOr<RunRecord> ReadRun(const std::string& path);

std::string SamplesPathOf(const std::string& run);

// The step that a line of samples.jsonl begins with; nothing for other text.
std::optional<int64_t> LeadingStep(const std::string& line);

// The values of a job by their path in YAML, such as "batch.samples", in the order of the schema;
// lists and text as JSON writes them.
std::vector<std::pair<std::string, std::string>> FlattenJob(const nlohmann::ordered_json& job);

}  // namespace halfstep
