// SPDX-License-Identifier: Apache-2.0
// What one model pass runs on. Index tensors are int32 and live on the device of the pass; the
// structs here own host vectors, which the CPU backend reads in place.
#pragma once

#include <cstdint>
#include <vector>

namespace halfstep {

// Training: whole sequences, packed one after another.
struct PackedBatch {
  std::vector<int32_t> tokens;      // [tokens]
  std::vector<int32_t> positions;   // [tokens], from 0 in each sequence
  std::vector<int32_t> cu_seqlens;  // [sequences + 1]
  std::vector<int32_t> logit_rows;  // rows of `tokens` whose next token is scored, ascending
  std::vector<int32_t> targets;     // [logit_rows], that next token
};

// Inference: any mix of prefill chunks and decode tokens over the paged cache.
struct StepBatch {
  std::vector<int32_t> tokens;     // [tokens]
  std::vector<int32_t> positions;  // [tokens]
  std::vector<int32_t>
      slots;  // [tokens], where keys and values go: block * kKvBlockTokens + offset
  std::vector<int32_t> query_start;   // [sequences + 1]
  std::vector<int32_t> context;       // [sequences], tokens in the cache after this step
  std::vector<int32_t> block_tables;  // [sequences, max_blocks], row-major
  int64_t max_blocks = 0;
  std::vector<int32_t> logit_rows;  // rows of `tokens` that need logits, ascending
};

}  // namespace halfstep
