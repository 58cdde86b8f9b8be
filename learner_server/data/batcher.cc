// SPDX-License-Identifier: Apache-2.0
#include "learner_server/data/batcher.h"

#include "kernels/check.h"

namespace halfstep {
namespace {

void Append(const TrainSequence& sequence, int64_t index, MicroBatch* micro) {
  PackedBatch& batch = micro->batch;
  const int64_t inputs = static_cast<int64_t>(sequence.tokens.size()) - 1;
  const int64_t first_token = static_cast<int64_t>(batch.tokens.size());
  micro->sequences.push_back({.sequence = index,
                              .first_row = static_cast<int64_t>(batch.logit_rows.size()),
                              .rows = sequence.response_tokens()});
  for (int64_t position = 0; position < inputs; ++position) {
    batch.tokens.push_back(sequence.tokens[position]);
    batch.positions.push_back(static_cast<int32_t>(position));
    if (position + 1 >= sequence.prompt_tokens) {
      batch.logit_rows.push_back(static_cast<int32_t>(first_token + position));
      batch.targets.push_back(sequence.tokens[position + 1]);
    }
  }
  batch.cu_seqlens.push_back(static_cast<int32_t>(batch.tokens.size()));
}

}  // namespace

std::vector<MicroBatch> PackMicroBatches(std::span<const TrainSequence> sequences,
                                         std::span<const int64_t> indices, int64_t token_budget) {
  std::vector<MicroBatch> packed;
  for (const int64_t index : indices) {
    const TrainSequence& sequence = sequences[index];
    HALFSTEP_CHECK_GE(sequence.prompt_tokens, 1);
    HALFSTEP_CHECK_GE(sequence.response_tokens(), 1);
    const int64_t inputs = static_cast<int64_t>(sequence.tokens.size()) - 1;
    if (packed.empty() ||
        static_cast<int64_t>(packed.back().batch.tokens.size()) + inputs > token_budget) {
      packed.emplace_back().batch.cu_seqlens.push_back(0);
    }
    Append(sequence, index, &packed.back());
  }
  return packed;
}

}  // namespace halfstep
