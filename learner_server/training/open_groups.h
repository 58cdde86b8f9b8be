// SPDX-License-Identifier: Apache-2.0
// Which groups a run with batch.max_lag has yet to train: batches take groups as they arrive, so
// that what was trained is no prefix of the data order.
#pragma once

#include <cstdint>
#include <vector>

namespace halfstep {

// Ordinals below the first one that was never trained nor passed over. After `groups` trained
// groups, of which `open` were passed over (ascending), the next one in data order is
// groups + open.size().
struct OpenGroups {
  uint64_t groups = 0;         // trained
  std::vector<uint64_t> open;  // ascending

  uint64_t next() const { return groups + open.size(); }
  // Notes that the group was trained, which it was not before. REQUIRES: it is open, or not below
  // next().
  void Train(uint64_t ordinal);
};

}  // namespace halfstep
