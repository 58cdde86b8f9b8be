// SPDX-License-Identifier: Apache-2.0
// The gRPC side of the coordinator: one bidirectional stream is one session.
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "halfstep/v1/rollout_coordination.grpc.pb.h"
#include "learner_server/rollout_coordination/rollout_coordinator.h"
#include "learner_server/rollout_coordination/stream_outbox.h"

namespace halfstep {

// Callback API: no reaction waits for anything. A thread of its own ticks the coordinator. Call
// RolloutCoordinator::Drain before stopping the server, and destroy this after it.
class RolloutCoordinationService final : public v1::RolloutCoordinationService::CallbackService {
 public:
  // `coordinator` must outlive it.
  explicit RolloutCoordinationService(RolloutCoordinator* coordinator);
  ~RolloutCoordinationService() override;

  grpc::ServerBidiReactor<v1::RolloutMessage, v1::LearnerMessage>* Attach(
      grpc::CallbackServerContext* context) override;

 private:
  void TickUntilStopped();

  RolloutCoordinator* const coordinator_;
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::weak_ptr<StreamOutbox>> outboxes_ ABSL_GUARDED_BY(mutex_);
  std::thread ticker_;
};

}  // namespace halfstep
