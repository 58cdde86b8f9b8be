// SPDX-License-Identifier: Apache-2.0
// Rows of a JSON Lines file, with errors that name the line.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace halfstep {

inline constexpr uint64_t kMaxDatasetBytes = uint64_t{1} << 30;

struct JsonlRow {
  int64_t line = 0;                  // from 1
  std::vector<std::string> columns;  // in the order they were asked for
};

// Calls `on_row` with every row's line and object; blank lines are skipped. Its errors and those of
// the row come back as INVALID_ARGUMENT "path:line: ..." (reason BAD_DATASET_ROW): a line that is
// not an object, or too long. The reason is EMPTY_DATASET when there is no row. RESOURCE_EXHAUSTED
// (reason DATASET_TOO_LARGE) for a file that is not to be held in memory: kMaxDatasetBytes.
absl::Status ForEachJsonlRow(
    const std::string& path,
    const std::function<absl::Status(int64_t line, const nlohmann::json& object)>& on_row);

// Reads the named columns of every row. A column holds a string, or a number, which is taken as it
// is written. The errors of ForEachJsonlRow, among them a column that is missing or holds something
// else (naming the columns there are).
absl::StatusOr<std::vector<JsonlRow>> ReadJsonl(const std::string& path,
                                                const std::vector<std::string>& columns);

}  // namespace halfstep
