// SPDX-License-Identifier: Apache-2.0
#include "learner_server/rollout_coordination/stream_outbox.h"

#include <algorithm>
#include <utility>

namespace halfstep {

bool StreamOutbox::Send(v1::LearnerMessage message) {
  absl::MutexLock lock(&mutex_);
  if (closed_ || writer_ == nullptr) return false;
  // An acknowledgement covers those before it, so only the last one needs to wait.
  if (message.has_ack() && queue_.size() > (writing_ ? 1u : 0u) && queue_.back().has_ack()) {
    queue_.back().mutable_ack()->set_sequence_number(message.ack().sequence_number());
    return true;
  }
  const size_t bytes = message.ByteSizeLong();
  if (queue_.size() >= limits_.messages || bytes_ + bytes > limits_.bytes) return false;
  bytes_ += bytes;
  queue_.push_back(std::move(message));
  Pump();
  return true;
}

void StreamOutbox::Close(const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  if (closed_) return;
  closed_ = why;
  Pump();
}

void StreamOutbox::Written(bool ok) {
  absl::MutexLock lock(&mutex_);
  writing_ = false;
  bytes_ -= std::min(bytes_, queue_.front().ByteSizeLong());
  queue_.pop_front();
  if (!ok) {
    queue_.clear();
    if (!closed_) closed_ = absl::UnavailableError("its stream broke");
  }
  Pump();
}

void StreamOutbox::Detach() {
  absl::MutexLock lock(&mutex_);
  writer_ = nullptr;
  queue_.clear();
}

void StreamOutbox::CancelIfStuck(absl::Time now, absl::Duration grace) {
  absl::MutexLock lock(&mutex_);
  if (!closed_ || ended_ || writer_ == nullptr) return;
  if (stuck_since_ == absl::InfiniteFuture()) stuck_since_ = now;
  if (now - stuck_since_ >= grace) writer_->Cancel();
}

void StreamOutbox::Pump() {
  if (writing_ || ended_ || writer_ == nullptr) return;
  if (!queue_.empty()) {
    writing_ = true;
    writer_->Write(&queue_.front());
  } else if (closed_) {
    ended_ = true;
    writer_->End(*closed_);
  }
}

}  // namespace halfstep
