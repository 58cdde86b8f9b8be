// SPDX-License-Identifier: Apache-2.0
// A small valid job to change one thing at a time.
#pragma once

namespace halfstep {

inline constexpr char kValidJob[] = R"(model: base
steps: 10
data:
  train: train.jsonl
  eval: eval.jsonl
sampling:
  max_new_tokens: 16
batch:
  prompts: 8
  samples: 4
optimizer:
  learning_rate: 1e-5
)";

inline constexpr char kValidSftJob[] = R"(objective: sft
model: base
steps: 10
data:
  train: train.jsonl
batch:
  prompts: 8
optimizer:
  learning_rate: 1e-5
)";

}  // namespace halfstep
