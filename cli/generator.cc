// SPDX-License-Identifier: Apache-2.0
#include "cli/generator.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "learner_server/data/jsonl.h"

namespace halfstep {

absl::StatusOr<std::vector<PromptText>> ReadPromptFile(const std::string& path,
                                                       const std::string& column) {
  HALFSTEP_ASSIGN_OR_RETURN(std::vector<JsonlRow> rows, ReadJsonl(path, {column}));
  std::vector<PromptText> prompts;
  for (JsonlRow& row : rows) {
    prompts.push_back({std::move(row.columns[0]), absl::StrCat(path, ":", row.line)});
  }
  return prompts;
}

absl::Status AtPrompt(const absl::Status& status, const PromptText& prompt) {
  return prompt.place.empty() ? status : WithContext(status, prompt.place);
}

}  // namespace halfstep
