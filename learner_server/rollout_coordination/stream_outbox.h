// SPDX-License-Identifier: Apache-2.0
// StreamOutbox: the messages that wait to be written to one rollout. Bounded; one write in flight.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "halfstep/v1/rollout_coordination.pb.h"
#include "learner_server/rollout_coordination/rollout_session.h"

namespace halfstep {

// What writes: the gRPC stream. Both calls return at once; Write is answered by
// StreamOutbox::Written, and the message stays as it is until then.
class StreamWriter {
 public:
  virtual ~StreamWriter() = default;
  virtual void Write(const v1::LearnerMessage* message) = 0;
  // Ends the stream; called once.
  virtual void End(const absl::Status& why) = 0;
  // Makes a write in flight fail, so that the stream can end though the rollout does not read.
  virtual void Cancel() = 0;
};

class StreamOutbox final : public RolloutOutbox {
 public:
  struct Limits {
    size_t messages = 8192;
    size_t bytes = size_t{64} << 20;
  };
  // `writer` must stay until Detach.
  StreamOutbox(StreamWriter* writer, Limits limits) : limits_(limits), writer_(writer) {}

  bool Send(v1::LearnerMessage message) override;
  void Close(const absl::Status& why) override;

  bool closed() const {
    absl::MutexLock lock(&mutex_);
    return closed_.has_value();
  }
  // The write in flight ended. A write that failed ends the stream.
  void Written(bool ok);
  // The stream is over: `writer` is not used any more.
  void Detach();
  // Closed for longer than `grace` and still not ended: cancels the write in flight.
  void CancelIfStuck(absl::Time now, absl::Duration grace);

 private:
  void Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Limits limits_;
  mutable absl::Mutex mutex_;
  StreamWriter* writer_ ABSL_GUARDED_BY(mutex_);
  std::deque<v1::LearnerMessage> queue_ ABSL_GUARDED_BY(mutex_);  // the front one may be in flight
  size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> closed_ ABSL_GUARDED_BY(mutex_);
  absl::Time stuck_since_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
};

}  // namespace halfstep
