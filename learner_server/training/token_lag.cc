// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/token_lag.h"

#include <algorithm>
#include <map>

#include "kernels/check.h"

namespace halfstep {

int64_t CurrentFrom(const TrainSequence& sequence, uint64_t version) {
  const bool current = !sequence.versions.empty() && sequence.versions.back().version == version;
  return sequence.response_tokens() - (current ? sequence.versions.back().count : 0);
}

bool MarkCurrent(uint64_t version, std::vector<std::vector<TrainSequence>>* updates) {
  bool all = true;
  for (std::vector<TrainSequence>& sequences : *updates) {
    for (TrainSequence& sequence : sequences) {
      sequence.current_from = CurrentFrom(sequence, version);
      all = all && sequence.current_from == 0;
    }
  }
  return all;
}

TokenLag MeasureTokenLag(uint64_t version, std::span<const std::vector<TrainSequence>> updates) {
  TokenLag lag;
  std::map<int64_t, int64_t> tokens_of;  // by lag
  int64_t tokens = 0;
  double sum = 0;
  for (const std::vector<TrainSequence>& sequences : updates) {
    for (const TrainSequence& sequence : sequences) {
      lag.sequences_spanning += sequence.versions.size() > 1;
      for (const VersionRun& run : sequence.versions) {
        HALFSTEP_CHECK_LE(run.version, version);
        const auto behind = static_cast<int64_t>(version - run.version);
        tokens_of[behind] += run.count;
        tokens += run.count;
        sum += static_cast<double>(behind) * run.count;
      }
    }
  }
  if (tokens == 0) return lag;
  lag.mean = sum / static_cast<double>(tokens);
  lag.max = tokens_of.rbegin()->first;
  // The smallest lag that at least 99 % of the tokens do not exceed.
  int64_t below = 0;
  for (const auto& [behind, count] : tokens_of) {
    below += count;
    lag.p99 = behind;
    if (below * 100 >= tokens * 99) break;
  }
  return lag;
}

}  // namespace halfstep
