// SPDX-License-Identifier: Apache-2.0
// check MODEL --range: a model's numeric range on the user's own prompts.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "cli/commands.h"
#include "cli/engine_flags.h"

namespace halfstep {

struct RangeArguments {
  std::string model;  // folder
  std::string prompts_file;
  std::string prompt_column = "prompt";
  std::string response_column;  // empty: the prompts' own tokens are what is predicted
  EngineFlags engine;
};

// Runs CheckRange and prints the report. The errors of opening the model and of ReadJsonl;
// INVALID_ARGUMENT naming the row for one that has no token to predict (reason PROMPT_TOO_SHORT) or
// more than the model has positions for (PROMPT_TOO_LONG); RESOURCE_EXHAUSTED (OUT_OF_MEMORY).
absl::Status ReportRange(const RangeArguments& arguments, CommandContext& context);

}  // namespace halfstep
