// SPDX-License-Identifier: Apache-2.0
// How many versions behind the policy in force the tokens of a batch are.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "learner_server/data/batcher.h"

namespace halfstep {

// Figures over the response tokens that a batch trains on.
struct TokenLag {
  double mean = 0;  // versions, as are the next two
  int64_t p99 = 0;
  int64_t max = 0;
  int64_t sequences_spanning = 0;  // with tokens of more than one version
};

// Where the tokens begin that `version` generated: runs ascend, so these are the last ones.
// response_tokens() where there are none.
int64_t CurrentFrom(const TrainSequence& sequence, uint64_t version);

// Fills current_from of every sequence in view of `version`, the policy in force. Returns whether
// that policy generated every token.
bool MarkCurrent(uint64_t version, std::vector<std::vector<TrainSequence>>* updates);

// REQUIRES: no run is of a later version than `version`.
TokenLag MeasureTokenLag(uint64_t version, std::span<const std::vector<TrainSequence>> updates);

}  // namespace halfstep
