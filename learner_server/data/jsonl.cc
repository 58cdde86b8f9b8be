// SPDX-License-Identifier: Apache-2.0
#include "learner_server/data/jsonl.h"

#include <cerrno>
#include <fstream>
#include <nlohmann/json.hpp>

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
                     "; name the right one in data.columns"));
  }
  if (found->is_string()) return found->get<std::string>();
  if (found->is_number()) return found->dump();
  return absl::InvalidArgumentError(
      absl::StrCat("column \"", name, "\" holds ", found->type_name(), ", not text or a number"));
}

absl::StatusOr<JsonlRow> ReadRow(const std::string& text, const std::vector<std::string>& columns) {
  const absl::StatusOr<nlohmann::json> parsed = ParseJson(text);
  if (!parsed.ok()) return WithContext(parsed.status(), "the row");
  const nlohmann::json& object = *parsed;
  if (!object.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a row must be an object, not ", object.type_name()));
  }
  JsonlRow row;
  for (const std::string& column : columns) {
    HALFSTEP_ASSIGN_OR_RETURN(std::string value, ReadColumn(object, column));
    row.columns.push_back(std::move(value));
  }
  return row;
}

}  // namespace

absl::StatusOr<std::vector<JsonlRow>> ReadJsonl(const std::string& path,
                                                const std::vector<std::string>& columns) {
  std::ifstream file(path);
  if (!file) return FileError(errno, "open", path);
  std::vector<JsonlRow> rows;
  std::string text;
  for (int64_t line = 1; std::getline(file, text); ++line) {
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (text.size() > kMaxLineBytes) return RowError(path, line, "longer than 16 MiB");
    absl::StatusOr<JsonlRow> row = ReadRow(text, columns);
    if (!row.ok()) return RowError(path, line, std::string(row.status().message()));
    row->line = line;
    rows.push_back(*std::move(row));
  }
  if (file.bad()) return FileError(errno, "read", path);
  if (rows.empty()) {
    return Error(absl::StatusCode::kInvalidArgument, "EMPTY_DATASET",
                 absl::StrCat(path, " has no rows"));
  }
  return rows;
}

}  // namespace halfstep
