// SPDX-License-Identifier: Apache-2.0
// The inside of Engine: an inbox shared with callers, and the state of the loop thread.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "kernels/stream.h"
#include "kernels/thread_pool.h"
#include "kernels/workspace.h"
#include "rollout_server/generation/engine.h"
#include "rollout_server/generation/model_runner.h"
#include "rollout_server/generation/scheduler.h"
#include "rollout_server/generation/sequence.h"

namespace halfstep {

class Engine::Loop {
 public:
  Loop(EngineOptions options, int64_t kv_blocks);
  ~Loop();

  const EngineOptions& options() const { return options_; }
  void SetWeights(std::shared_ptr<const ModelWeights> weights, uint64_t version,
                  std::function<void(const absl::Status&)> done);
  absl::StatusOr<GroupHandle> Submit(GroupRequest request, GroupCallbacks callbacks);
  void Cancel(GroupHandle group);
  bool Drain(absl::Time deadline);
  void Stop();
  EngineStats stats() const;

 private:
  struct Group {
    GroupHandle handle = 0;
    std::shared_ptr<const GroupRequest> request;
    GroupCallbacks callbacks;
    absl::Time queued;
    SequenceId first = 0;  // of its sequences; 0 while held back
    uint32_t unfinished = 0;
    absl::Status failure;  // not OK: to be ended
  };
  struct Running {
    Sequence sequence;
    Group* group;
  };
  struct PendingWeights {
    std::shared_ptr<const ModelWeights> weights;
    uint64_t version = 0;
    std::function<void(const absl::Status&)> done;
  };
  struct Inbox {
    std::deque<Group> groups;
    std::set<GroupHandle> cancels;
    std::vector<PendingWeights> weights;  // all but the last are replaced ones
    bool empty() const { return groups.empty() && cancels.empty() && weights.empty(); }
  };

  absl::Status Validate(const GroupRequest& request) const;

  // On the loop thread.
  void Run();
  // Waits for something to do; false when the engine is stopping.
  bool TakeInbox(Inbox* inbox, bool idle);
  void Accept(Inbox inbox);
  void AcceptGroup(Group group);
  void Start(Group* group);
  void TrySwap();
  // Groups that only the weights served now may generate.
  bool HoldsExactGroups() const;
  bool Step();
  void FailBrokenGroups();
  // Gives the drawn tokens to their sequences; returns the sequences that need no more.
  std::vector<SequenceId> DeliverDraws();
  void Finish(SequenceId id, FinishReason reason);
  void EndGroup(GroupHandle handle);
  void FailGroup(GroupHandle handle, const absl::Status& status);
  void FailEverything();
  void PublishStats();

  const EngineOptions options_;
  std::atomic<int64_t> saturated_stores_{0};
  ThreadPool threads_;
  Workspace workspace_;
  std::unique_ptr<Stream> stream_;  // CUDA only
  Scheduler scheduler_;
  ModelRunner runner_;

  mutable absl::Mutex mutex_;
  Inbox inbox_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  GroupHandle next_handle_ ABSL_GUARDED_BY(mutex_) = 1;
  // Handle to samples of every group that has not ended.
  std::map<GroupHandle, uint32_t> open_ ABSL_GUARDED_BY(mutex_);
  int64_t outstanding_ ABSL_GUARDED_BY(mutex_) = 0;  // samples of open groups
  EngineStats stats_ ABSL_GUARDED_BY(mutex_);

  // Of the loop thread alone.
  std::map<GroupHandle, Group> groups_;
  std::unordered_map<SequenceId, Running> sequences_;
  std::shared_ptr<const ModelWeights> weights_;
  uint64_t version_ = 0;
  std::optional<PendingWeights> pending_;
  StepPlan plan_;
  StepReport report_;
  EngineStats local_;

  absl::Mutex join_mutex_;
  std::thread thread_ ABSL_GUARDED_BY(join_mutex_);
};

}  // namespace halfstep
