// SPDX-License-Identifier: Apache-2.0
// StepPlan: what one engine step computes. Made by the Scheduler, carried out by the ModelRunner.
#pragma once

#include <cstdint>
#include <vector>

namespace halfstep {

// In order of arrival: a smaller id is older.
using SequenceId = uint64_t;

// Tokens [begin, begin + count) of a sequence go through the model.
struct PlannedChunk {
  SequenceId sequence = 0;
  int64_t begin = 0;
  int64_t count = 0;
  // Cache blocks of the sequence from position 0 on, covering the chunk. Owned by the scheduler and
  // valid until its next call.
  const std::vector<int32_t>* blocks = nullptr;
};

// The next token of `sequence` is drawn from the logits of the last token of chunks[chunk]. Usually
// that is the sequence's own chunk; the samples of one prompt share the chunk that ends the prompt.
struct PlannedDraw {
  SequenceId sequence = 0;
  int64_t chunk = 0;
};

// Keys and values of a whole block, in every layer.
struct BlockCopy {
  int32_t from = 0;
  int32_t to = 0;
};

struct StepPlan {
  std::vector<PlannedChunk> chunks;
  std::vector<PlannedDraw> draws;  // ascending in chunk
  std::vector<BlockCopy> copies;   // after the pass
  int64_t tokens = 0;              // sum of the chunks' counts

  bool empty() const { return chunks.empty(); }
  void Clear() {
    chunks.clear();
    draws.clear();
    copies.clear();
    tokens = 0;
  }
};

}  // namespace halfstep
