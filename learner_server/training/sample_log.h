// SPDX-License-Identifier: Apache-2.0
// The lineage of a training response: which prompt, whose weights and which reward made it what the
// step learned from. A line of samples.jsonl (docs/run_folder.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/trajectory/trajectory.h"

namespace halfstep {

class Tokenizer;

struct SampleRecord {
  uint64_t group = 0;
  uint32_t index = 0;  // within the group
  int64_t row = 0;     // line of the training data that the prompt is from, from 1
  std::string rollout_id;
  std::vector<VersionRun> versions;
  FinishReason finish_reason = FinishReason::kStop;
  std::vector<int32_t> tokens;   // of the response
  std::vector<float> log_probs;  // log mu of each
  Reward reward;
  std::optional<double> advantage;  // none: it took no part
};

// Without what is known only beside the trajectory: row and advantage.
SampleRecord RecordOf(const Trajectory& trajectory);

// One line, without the newline; `step` comes first. The text is what `tokenizer` makes of the
// tokens, special ones included.
std::string SampleLine(int64_t step, const SampleRecord& record, const Tokenizer& tokenizer);

}  // namespace halfstep
