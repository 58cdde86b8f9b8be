// SPDX-License-Identifier: Apache-2.0
// PacedRollout: a rollout server but for the services it offers itself, whose engine does as many
// steps as a test allows and then stands still.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "rollout_server/job_session.h"
#include "rollout_server/learner_link.h"
#include "rollout_server/rollout_agent.h"

namespace halfstep {

// Thread-safe. What is awaited fails the test when it does not come within a minute.
class PacedRollout final : public LinkPeer {
 public:
  struct Options {
    std::string id;
    std::string learner;        // where its services are
    int64_t steps = 0;          // that the engine may do from the start
    size_t kv_cache_bytes = 0;  // see EngineOptions
  };

  explicit PacedRollout(const Options& options);
  // Dies: its stream breaks, whatever it holds.
  ~PacedRollout() override;

  // The engine may do so many steps more than it did, or any number.
  void AllowSteps(int64_t steps) ABSL_LOCKS_EXCLUDED(mutex_);
  void AllowAllSteps() ABSL_LOCKS_EXCLUDED(mutex_);

  void AwaitAttached() ABSL_LOCKS_EXCLUDED(mutex_);
  // Every step allowed is done, and the engine stands still.
  void AwaitStill() ABSL_LOCKS_EXCLUDED(mutex_);
  // The engine was given the weights of `version`, which it takes up before its next step.
  void AwaitWeights(uint64_t version) ABSL_LOCKS_EXCLUDED(mutex_);

  // ---- LinkPeer
  void OnOpened(uint64_t stream) override;
  void OnMessage(uint64_t stream, const v1::LearnerMessage& message) override;
  void OnClosed(uint64_t stream, const absl::Status& why) override;
  bool NextMessage(uint64_t stream, v1::RolloutMessage* message) override;

 private:
  JobSessionEvents WatchedEvents();
  // On the engine's thread, also where it did no step.
  void OnStep(int64_t steps) ABSL_LOCKS_EXCLUDED(mutex_);
  void Await(const char* what, const absl::Condition& condition) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  bool attached_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t steps_ ABSL_GUARDED_BY(mutex_) = 0;  // that the engine did
  int64_t allowed_ ABSL_GUARDED_BY(mutex_);
  int64_t version_given_ ABSL_GUARDED_BY(mutex_) = -1;

  std::unique_ptr<RolloutAgent> agent_;
  std::unique_ptr<JobSession> session_;
  std::unique_ptr<LearnerLink> link_;
};

}  // namespace halfstep
