// SPDX-License-Identifier: Apache-2.0
// RolloutAgent: the rollout server's side of the conversation with the learner
// (proto/halfstep/v1/rollout_coordination.proto).
//
// When a stream breaks, every group is dropped: the learner gives them out again, and in the
// bitwise profile whoever generates them then generates the same. The model and verified weights
// stay.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "rollout_server/assignment_book.h"
#include "rollout_server/job_session.h"
#include "rollout_server/learner_link.h"

namespace halfstep {

namespace v1 {
class Abandon;
class Assign;
class LoadJob;
class PrepareWeights;
class RolloutFailure;
}  // namespace v1

struct AgentOptions {
  std::string rollout_id;
  std::string incarnation;
  std::string numerics_fingerprint;
  uint64_t kv_cache_bytes = 0;
  absl::Duration welcome_timeout = absl::Seconds(10);
  // Called, from the link's thread, when this server becomes attached and when it no longer is;
  // must not block.
  std::function<void(bool attached)> on_attached;
};

// Thread-safe.
class RolloutAgent final : public LinkPeer {
 public:
  explicit RolloutAgent(AgentOptions options);
  ~RolloutAgent() override;

  // Before the link starts; both must outlive the agent's last call. `address` is where this
  // server's generation service listens.
  void Connect(JobSession* session, LearnerLink* link, std::string address);
  // What the session is to be made with.
  JobSessionEvents SessionEvents();

  // OK while attached and welcomed, else why not.
  absl::Status attached() const;

  // Tells the learner that this server leaves, and waits until everything held was finished and
  // acknowledged, or the stream was lost, or `deadline`. Returns whether nothing was left.
  bool Leave(absl::Time deadline);

  // ---- LinkPeer
  void OnOpened(uint64_t stream) override;
  void OnMessage(uint64_t stream, const v1::LearnerMessage& message) override;
  void OnClosed(uint64_t stream, const absl::Status& why) override;
  bool NextMessage(uint64_t stream, v1::RolloutMessage* message) override;

 private:
  // Of the stream that is open.
  struct Stream {
    uint64_t number = 0;
    absl::Time opened;
    absl::Time last_heard;
    absl::Time last_heartbeat;
    bool welcomed = false;
    absl::Duration heartbeat_interval = absl::Seconds(2);
    absl::Duration timeout = absl::Seconds(30);
    uint64_t epoch = 0;  // of the last LoadJob; 0 for none
    bool job_loaded = false;
    uint64_t capacity = 0;  // groups held at once
    uint64_t credit_sent = 0;
    bool leaving_sent = false;
    bool released = false;  // the learner will assign nothing more
  };

  void On(const v1::LoadJob& load) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void On(const v1::PrepareWeights& prepare) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void On(const v1::Assign& assign) ABSL_LOCKS_EXCLUDED(mutex_);
  void On(const v1::Abandon& abandon) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropEverything() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CancelTicket(Ticket ticket) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnSample(Ticket ticket, Sample sample) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnGroupFailed(Ticket ticket, const GroupKey& key, const absl::Status& why)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Gives what is missing of the group back to the learner, and tells it why.
  void HandBack(Ticket ticket, const GroupKey& key, const absl::Status& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Queues what `fill` makes, if the order came by the stream that is open.
  void OnEvent(uint64_t order, const std::function<void(v1::RolloutMessage*)>& fill)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // The caller says what failed.
  v1::RolloutFailure* QueueFailure(uint64_t epoch, const absl::Status& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FillHello(v1::RolloutMessage* message) const;
  void FillHeartbeat(v1::RolloutMessage* message) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const AgentOptions options_;
  JobSession* session_ = nullptr;
  LearnerLink* link_ = nullptr;
  std::string address_;

  mutable absl::Mutex mutex_;
  std::optional<Stream> stream_ ABSL_GUARDED_BY(mutex_);
  absl::Status detached_ ABSL_GUARDED_BY(mutex_);  // why there is no stream
  bool leaving_ ABSL_GUARDED_BY(mutex_) = false;
  AssignmentBook book_ ABSL_GUARDED_BY(mutex_);
  struct Running {
    std::weak_ptr<Engine> engine;
    GroupHandle handle = 0;
  };
  std::map<Ticket, Running> running_ ABSL_GUARDED_BY(mutex_);
  struct MessageQueue;
  const std::unique_ptr<MessageQueue> control_ ABSL_PT_GUARDED_BY(mutex_);
};

}  // namespace halfstep
