// SPDX-License-Identifier: Apache-2.0
// Rows of a JSON Lines file, with errors that name the line.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace halfstep {

inline constexpr uint64_t kMaxDatasetBytes = uint64_t{1} << 30;

struct JsonlRow {
  int64_t line = 0;                  // from 1
  std::vector<std::string> columns;  // in the order they were asked for
};

// Reads the named columns of every row; blank lines are skipped. A column holds a string, or a
// number, which is taken as it is written. INVALID_ARGUMENT "path:line: ..." for a line that is not
// an object, for one that is too long, and for a column that is missing or holds something else
// (naming the columns there are); the reason is EMPTY_DATASET when there is no row.
// RESOURCE_EXHAUSTED (reason DATASET_TOO_LARGE) for a file that is not to be held in memory:
// kMaxDatasetBytes.
absl::StatusOr<std::vector<JsonlRow>> ReadJsonl(const std::string& path,
                                                const std::vector<std::string>& columns);

}  // namespace halfstep
