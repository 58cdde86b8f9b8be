// SPDX-License-Identifier: Apache-2.0
#include "cli/piece_queue.h"

#include <utility>

namespace halfstep {
namespace {

// How often a wait asks whether to go on; a piece ends it at once.
constexpr absl::Duration kAskInterval = absl::Milliseconds(100);

}  // namespace

void PieceQueue::Push(Piece piece) {
  absl::MutexLock lock(&mutex_);
  pieces_.push_back(std::move(piece));
}

void PieceQueue::End(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  --open_;
  if (failure_.ok()) failure_ = status;
}

absl::Status PieceQueue::Deliver(const OnPiece& on_piece, const std::function<bool()>& go_on) {
  while (go_on()) {
    std::deque<Piece> pieces;
    bool ended;
    absl::Status failure;
    {
      absl::MutexLock lock(&mutex_);
      auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return !pieces_.empty() || open_ == 0 || !failure_.ok();
      };
      mutex_.AwaitWithTimeout(absl::Condition(&ready), kAskInterval);
      pieces = std::exchange(pieces_, {});
      ended = open_ == 0;
      failure = failure_;
    }
    for (const Piece& piece : pieces) on_piece(piece);
    if (ended || !failure.ok()) return failure;
  }
  return absl::CancelledError("interrupted");
}

}  // namespace halfstep
