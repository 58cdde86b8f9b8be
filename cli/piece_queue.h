// SPDX-License-Identifier: Apache-2.0
// Pieces on their way from the threads that make them to the one that shows them, which may be
// slow: a terminal, a pipe.
#pragma once

#include <deque>
#include <functional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "cli/generator.h"

namespace halfstep {

// Thread-safe. Holds at most what its prompts can give: samples times their lengths.
class PieceQueue {
 public:
  explicit PieceQueue(size_t prompts) : open_(prompts) {}

  void Push(Piece piece);
  // One prompt has ended; nothing of it comes any more.
  void End(const absl::Status& status);

  // Hands out pieces, on this thread, until every prompt has ended (OK), one has failed, or `go_on`
  // says false (CANCELLED).
  absl::Status Deliver(const OnPiece& on_piece, const std::function<bool()>& go_on);

 private:
  absl::Mutex mutex_;
  std::deque<Piece> pieces_ ABSL_GUARDED_BY(mutex_);
  size_t open_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace halfstep
