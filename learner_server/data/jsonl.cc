// SPDX-License-Identifier: Apache-2.0
#include "learner_server/data/jsonl.h"

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

constexpr size_t kMaxLineBytes = size_t{16} << 20;

absl::Status RowError(const std::string& path, int64_t line, const std::string& what) {
  return Error(absl::StatusCode::kInvalidArgument, "BAD_DATASET_ROW",
               absl::StrCat(path, ":", line, ": ", what));
}

absl::StatusOr<std::string> ReadColumn(const nlohmann::json& object, const std::string& name) {
  const auto found = object.find(name);
  if (found == object.end()) {
    std::vector<std::string> present;
    for (const auto& item : object.items()) present.push_back(item.key());
    return absl::InvalidArgumentError(
        absl::StrCat("no column \"", name, "\"; the row has ",
                     present.empty() ? "no columns" : absl::StrJoin(present, ", "),
                     "; name the right one (data.columns of a job, --prompt-column and "
                     "--answer-column of a command)"));
  }
  if (found->is_string()) return found->get<std::string>();
  if (found->is_number()) return found->dump();
  return absl::InvalidArgumentError(
      absl::StrCat("column \"", name, "\" holds ", found->type_name(), ", not text or a number"));
}

absl::StatusOr<nlohmann::json> ParseRow(const std::string& text) {
  absl::StatusOr<nlohmann::json> parsed = ParseJson(text);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("the row ", parsed.status().message()));
  }
  if (!parsed->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a row must be an object, not ", parsed->type_name()));
  }
  return parsed;
}

// A pipe would be waited for and a device may never end, so only files are opened.
absl::Status CheckFile(const std::string& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (error) return FileError(error.value(), "open", path);
  if (!std::filesystem::is_regular_file(status)) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' is not a regular file"));
  }
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return FileError(error.value(), "inspect", path);
  if (size <= kMaxDatasetBytes) return absl::OkStatus();
  return Error(
      absl::StatusCode::kResourceExhausted, "DATASET_TOO_LARGE",
      absl::StrCat(path, " has ", size, " bytes; a learner holds its data in memory and takes ",
                   kMaxDatasetBytes, "; train on a part of it"));
}

}  // namespace

absl::Status ForEachJsonlRow(
    const std::string& path,
    const std::function<absl::Status(int64_t line, const nlohmann::json& object)>& on_row) {
  HALFSTEP_RETURN_IF_ERROR(CheckFile(path));
  std::ifstream file(path);
  if (!file) return FileError(errno, "open", path);
  std::vector<char> buffer(kMaxLineBytes + 1);  // with the zero that getline puts at the end
  std::string text;
  bool empty = true;
  for (int64_t line = 1; file.peek() != std::ifstream::traits_type::eof(); ++line) {
    file.getline(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    if (file.bad()) break;
    if (file.fail()) return RowError(path, line, "longer than 16 MiB");
    // A newline is counted, the end of the file is not.
    text.assign(buffer.data(), static_cast<size_t>(file.gcount()) - (file.eof() ? 0 : 1));
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const absl::StatusOr<nlohmann::json> row = ParseRow(text);
    const absl::Status status = row.ok() ? on_row(line, *row) : row.status();
    if (!status.ok()) return RowError(path, line, std::string(status.message()));
    empty = false;
  }
  if (file.bad()) return FileError(errno, "read", path);
  if (empty) {
    return Error(absl::StatusCode::kInvalidArgument, "EMPTY_DATASET",
                 absl::StrCat(path, " has no rows"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<JsonlRow>> ReadJsonl(const std::string& path,
                                                const std::vector<std::string>& columns) {
  std::vector<JsonlRow> rows;
  HALFSTEP_RETURN_IF_ERROR(
      ForEachJsonlRow(path, [&](int64_t line, const nlohmann::json& object) -> absl::Status {
        JsonlRow row;
        row.line = line;
        for (const std::string& column : columns) {
          HALFSTEP_ASSIGN_OR_RETURN(std::string value, ReadColumn(object, column));
          row.columns.push_back(std::move(value));
        }
        rows.push_back(std::move(row));
        return absl::OkStatus();
      }));
  return rows;
}

}  // namespace halfstep
