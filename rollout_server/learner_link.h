// SPDX-License-Identifier: Apache-2.0
// LearnerLink: keeps one Attach stream to the learner open, for as long as it takes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace grpc {
class Channel;
class ClientContext;
}  // namespace grpc

namespace halfstep {

namespace v1 {
class LearnerMessage;
class RolloutMessage;
}  // namespace v1

// What goes over the streams. Streams come one after another and are numbered from 1. OnOpened,
// OnMessage and OnClosed are called on the link's thread, NextMessage on the stream's writer
// thread.
class LinkPeer {
 public:
  virtual ~LinkPeer() = default;
  virtual void OnOpened(uint64_t stream) = 0;
  virtual void OnMessage(uint64_t stream, const v1::LearnerMessage& message) = 0;
  virtual void OnClosed(uint64_t stream, const absl::Status& why) = 0;
  // Fills in what is to be sent next; false when there is nothing now.
  virtual bool NextMessage(uint64_t stream, v1::RolloutMessage* message) = 0;
};

struct LinkOptions {
  std::string learner;  // for messages
  absl::Duration connect_timeout = absl::Seconds(5);
  absl::Duration first_backoff = absl::Milliseconds(100);
  absl::Duration longest_backoff = absl::Seconds(5);
  // How often NextMessage is asked without a Wake.
  absl::Duration tick = absl::Milliseconds(100);
};

// Thread-safe.
class LearnerLink {
 public:
  // `peer` must outlive it.
  LearnerLink(LinkOptions options, std::shared_ptr<grpc::Channel> channel, LinkPeer* peer);
  // Stops.
  ~LearnerLink();

  void Start();
  // There is something to send.
  void Wake();
  // Ends the stream that is open; another one follows. Never blocks.
  void Reset();
  // Half-closes the stream, waits until the learner ends it or `deadline`, then ends it; no other
  // follows. Idempotent.
  void Stop(absl::Time deadline);

 private:
  void Run();
  // Waits for the connection, in slices, so that Stop does not wait with it.
  bool Connect();
  // Opens one stream and serves it to its end.
  absl::Status RunStream(uint64_t stream);
  template <class Stream>
  void Write(uint64_t number, Stream* stream);
  bool stopping() const;

  const LinkOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;
  LinkPeer* const peer_;

  mutable absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool wake_ ABSL_GUARDED_BY(mutex_) = false;
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = true;  // the link thread is not running
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;

  absl::Mutex join_mutex_;
  std::thread thread_ ABSL_GUARDED_BY(join_mutex_);
};

}  // namespace halfstep
