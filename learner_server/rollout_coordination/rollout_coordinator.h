// SPDX-License-Identifier: Apache-2.0
// RolloutCoordinator: who is attached, what each serves, who holds which group. It knows no gRPC:
// streams are sessions that put messages in and an outbox that takes messages out
// (rollout_coordination_service.h).
//
// Everything that happens ends in one scheduling pass over the same state, and groups are queued in
// canonical order, so nothing depends on the order in which messages arrive.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/clock.h"
#include "common/metrics/learner_metrics.h"
#include "learner_server/data/rollout_pool.h"
#include "learner_server/rollout_coordination/group_table.h"
#include "learner_server/rollout_coordination/rollout_session.h"
#include "learner_server/rollout_coordination/sample_checks.h"
#include "learner_server/rollout_coordination/version_plan.h"

namespace halfstep::v1 {
class Credit;
class Hello;
class JobLoaded;
class Leaving;
class RolloutFailure;
class RolloutHeartbeat;
class RolloutMessage;
class Samples;
class Serving;
class WeightsReady;
}  // namespace halfstep::v1

namespace halfstep {

struct CoordinatorOptions {
  std::string incarnation;  // of this learner process
  std::string
      numerics_fingerprint;  // of its own backend; rollouts of bitwise jobs must have the same
  absl::Duration heartbeat_interval = absl::Seconds(2);
  absl::Duration suspect_after = absl::Seconds(10);  // silence
  absl::Duration lost_after = absl::Seconds(30);     // silence
  // Without progress of an engine that holds groups, however often its server is heard.
  absl::Duration stuck_after = absl::Minutes(2);
  absl::Duration hello_timeout = absl::Seconds(10);
  int max_ungreeted = 64;  // streams whose Hello has not come
  // What a rollout may take to load a job, to fetch a set of weights, or to switch to it.
  absl::Duration phase_timeout = absl::Minutes(10);
  int max_load_attempts = 3;
  // Times a group may be queued again before it is given up.
  int max_reassignments = 5;
  // How long a rollout that was late with a group does not get it again while others serve.
  absl::Duration avoid_time = absl::Seconds(30);
  // Bitwise jobs: an idle rollout gets a copy of a group that has taken this many times the mean.
  double copy_after_mean_times = 2;
};

// Thread-safe. The sink is called on threads that bring messages or tick, never inside a call of
// RolloutPool and never under the coordinator's lock: it may call Assign and Publish, and the
// caller of those may hold the sink's own lock. EndJob is different: it waits for a call in
// progress.
class RolloutCoordinator final : public RolloutPool {
 public:
  // `clock` and `metrics` must outlive it.
  RolloutCoordinator(CoordinatorOptions options, const Clock* clock, LearnerMetrics* metrics);
  ~RolloutCoordinator() override;

  // ---- RolloutPool. A group's deadline says how long one rollout has for it, from the moment it
  // is given to it: the time between Assign and `deadline`.
  void BeginJob(const RolloutJob& job, SampleSink* sink) override;
  void EndJob() override;
  void Publish(std::shared_ptr<const WeightSet> weights) override;
  void ReleaseWeightsBelow(uint64_t version) override;
  void Assign(std::vector<GroupAssignment> groups) override;
  RolloutPoolStatus Status() const override;

  // ---- Streams. A session lives from Attach until OnClosed, or until it was closed through its
  // outbox, which Attach may do already: what it brings after that is dropped.
  SessionId Attach(std::shared_ptr<RolloutOutbox> outbox);
  void OnMessage(SessionId session, v1::RolloutMessage message);
  void OnClosed(SessionId session);
  // Heartbeats, silence and deadlines; call every 100 ms or so.
  void Tick();
  // The learner is stopping: every rollout is told, its stream ends, later ones are refused.
  void Drain();

  // ---- What rollouts fetch. Null when it is not held (any more).
  std::shared_ptr<const WeightSet> FindWeights(uint64_t job_epoch,
                                               const WeightIdentity& identity) const;
  std::shared_ptr<const RolloutJob> FindJob(uint64_t job_epoch) const;

 private:
  struct Job {
    std::shared_ptr<const RolloutJob> spec;
    std::string model_digest;
    SampleSink* sink = nullptr;
    std::map<uint64_t, std::shared_ptr<const WeightSet>> published;
    std::set<uint64_t> versions;  // of all that were ever published
    uint64_t released_below = 0;
    GroupTable groups;
    int64_t groups_reassigned = 0;
    absl::Duration mean_group_time;  // moving; zero until a group was completed
  };
  // News for the sink: a sample, or the loss of a group.
  struct Delivery {
    std::shared_ptr<const GroupAssignment> assignment;
    std::string rollout_id;
    std::optional<Sample> sample;
    absl::Status lost;
  };
  // A rollout that was sent away.
  struct Refusal {
    std::string rollout_id;
    std::string why;
    absl::Time when;
  };
  // A sample as it came, converted before the lock is taken.
  struct Arrival {
    GroupKey key;
    absl::Status malformed;
    Sample sample;
  };

  // rollout_coordinator.cc
  RolloutSession* FindSession(SessionId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Send(RolloutSession& session, v1::LearnerMessage message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Apply(RolloutSession& session, RolloutEvent event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendLoadJob(RolloutSession& session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Dooms the session otherwise.
  bool FingerprintFits(RolloutSession& session) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void GiveBackAll(RolloutSession& session, const std::string& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void GiveBack(const GroupKey& key, RolloutSession& session, const std::string& why, bool avoid)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendAbandon(RolloutSession& session, const std::vector<GroupKey>& keys)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Remove(RolloutSession& session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Tells the sink what is pending, unless another thread is at it, which then does.
  void DeliverPending() ABSL_LOCKS_EXCLUDED(mutex_);

  // rollout_messages.cc: what each message does.
  static std::vector<Arrival> Convert(const v1::Samples& samples);
  // Returns whether a scheduling pass is due.
  bool Handle(RolloutSession& session, const v1::RolloutMessage& message,
              std::vector<Arrival> arrivals) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Heard(RolloutSession& session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A suspect becomes again what it was.
  void Recover(RolloutSession& session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void On(RolloutSession& session, const v1::Hello& hello) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void On(RolloutSession& session, const v1::JobLoaded& loaded)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void On(RolloutSession& session, const v1::WeightsReady& ready)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void On(RolloutSession& session, const v1::Serving& serving)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void On(RolloutSession& session, const v1::Credit& credit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void On(RolloutSession& session, const v1::RolloutFailure& failure)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void On(RolloutSession& session, const v1::Leaving& leaving)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void On(RolloutSession& session, const v1::RolloutHeartbeat& heartbeat)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Ends the streams of other servers of the same id; false (and doomed) when one of those came
  // later.
  bool ReplaceOlder(RolloutSession& session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether `identity` is a set this job published or has released: what names it may be late, but
  // is not wrong.
  bool IsOurs(const WeightIdentity& identity) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LoadFailed(RolloutSession& session, RolloutEvent event, const std::string& reason,
                  const std::string& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // These return whether a scheduling pass is due.
  bool OnSamples(RolloutSession& session, uint64_t job_epoch, uint64_t sequence_number,
                 std::vector<Arrival> arrivals) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool OnSample(RolloutSession& session, Arrival arrival) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Empty when it was not.
  static std::string WhyRefused(const RolloutSession& session, const SampleVerdict& verdict);
  // Ends a group, or this session's part in it, when its last sample came.
  bool SettleGroup(const GroupKey& key, RolloutSession& session)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Drop(const std::string& rollout_id, const GroupKey& key, DropReason reason,
            const std::string& detail) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Counts samples that the sink is not given.
  void CountDropped(const GroupKey& key, DropReason reason, size_t samples)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // rollout_scheduling.cc: the pass after everything that happens.
  void Schedule() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool AnyDoomed() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RemoveDoomed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::map<uint64_t, int64_t> WaitingByVersion() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool MayWork(const RolloutSession& session) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  VersionPlan SwitchVersions() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SteerTo(RolloutSession& session, uint64_t version) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Prepare(RolloutSession& session, uint64_t version) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AssignWaiting(const VersionPlan& plan) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Null when nobody can take it now; `nobody` stays true when nobody could take any of its
  // version.
  RolloutSession* PickFor(const Group& group, bool* nobody) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AssignCopies() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Give(const GroupKey& key, RolloutSession& session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TickSession(RolloutSession& session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ExpireHolds() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static std::string PhaseOf(const RolloutSession& session);
  void ExportStates() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string WaitingFor() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const CoordinatorOptions options_;
  const Clock& clock_;
  LearnerMetrics& metrics_;

  mutable absl::Mutex mutex_;
  SessionId next_session_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<SessionId, RolloutSession> sessions_ ABSL_GUARDED_BY(mutex_);
  // (rollout id, incarnation) of servers that another one of the same id replaced; the last ones.
  std::vector<std::pair<std::string, std::string>> retired_ ABSL_GUARDED_BY(mutex_);
  // The last one, until a rollout of its name serves.
  std::optional<Refusal> refusal_ ABSL_GUARDED_BY(mutex_);
  // Rollout ids of streams that were ended from here and are not closed yet: they may still send.
  std::map<SessionId, std::string> ended_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<Job> job_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<Delivery> pending_ ABSL_GUARDED_BY(mutex_);
  bool delivering_ ABSL_GUARDED_BY(mutex_) = false;
  std::array<absl::Time, kDropReasonCount> drop_logged_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace halfstep
