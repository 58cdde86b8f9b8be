// SPDX-License-Identifier: Apache-2.0
// CheckpointStore: the checkpoints of one run, newest first, with a LATEST pointer; what does not
// verify is set aside and the one before is used.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/atomic_directory.h"

namespace halfstep {

// One writer per root; nothing else may write below it. Not thread-safe.
class CheckpointStore {
 public:
  struct Rejected {
    std::string path;    // where it is kept, ".corrupt" at the end
    std::string reason;  // what did not verify
  };
  struct Checkpoint {
    int64_t step = 0;
    std::string path;
    std::vector<Rejected> rejected;  // newer ones that did not verify
  };

  // Makes `root` if there is none and cleans up after earlier incarnations.
  static absl::StatusOr<CheckpointStore> Open(const std::string& root,
                                              const std::string& incarnation);

  // Begins ROOT/step_N; give the filled writer to Commit.
  absl::StatusOr<AtomicDirectoryWriter> Begin(int64_t step) const;
  // Makes the checkpoint last and points LATEST at it. After an error the older checkpoints are as
  // they were.
  absl::Status Commit(AtomicDirectoryWriter writer) const;

  // The newest checkpoint whose files all match their digests; newer ones are renamed ".corrupt".
  // NOT_FOUND when there is none. DATA_LOSS, reason NO_SOUND_CHECKPOINT, when there are some and
  // none verifies: they stay as they are, so that nobody takes the run for a new one. An I/O error
  // that is not about contents is returned as it is.
  absl::StatusOr<Checkpoint> FindNewest() const;

  // Removes the oldest checkpoints down to `keep` (at least 2), after verifying those that stay;
  // when one of them fails, nothing is removed and its error is returned.
  absl::Status Prune(int64_t keep) const;

  // Steps of the committed checkpoints, newest first; contents are not looked at.
  absl::StatusOr<std::vector<int64_t>> Steps() const;
  std::string PathOf(int64_t step) const;

 private:
  CheckpointStore(std::string root, std::string incarnation)
      : root_(std::move(root)), incarnation_(std::move(incarnation)) {}

  std::string root_;
  std::string incarnation_;
};

}  // namespace halfstep
