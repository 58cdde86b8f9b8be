// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/open_groups.h"

#include <algorithm>

#include "kernels/check.h"

namespace halfstep {

void OpenGroups::Train(uint64_t ordinal) {
  const uint64_t first_unseen = next();
  if (ordinal < first_unseen) {
    const auto found = std::lower_bound(open.begin(), open.end(), ordinal);
    HALFSTEP_CHECK(found != open.end() && *found == ordinal);
    open.erase(found);
  }
  for (uint64_t passed = first_unseen; passed < ordinal; ++passed) open.push_back(passed);
  ++groups;
}

}  // namespace halfstep
