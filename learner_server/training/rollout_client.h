// SPDX-License-Identifier: Apache-2.0
// RolloutClient: hands groups to the rollout pool and waits for their scored trajectories, with
// deadlines, and saying whom it waits for.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "learner_server/data/rollout_pool.h"
#include "learner_server/data/trajectory_buffer.h"
#include "learner_server/job/job_runner.h"

namespace halfstep {

struct RolloutClientOptions {
  absl::Duration group_timeout = absl::Minutes(10);  // for one rollout to finish a group
  absl::Duration batch_timeout = absl::Hours(2);     // for all groups that are waited for together
  // Without a serving rollout: how long joining may take before a notice, and how long until the
  // job pauses.
  absl::Duration join_grace = absl::Seconds(10);
  absl::Duration no_rollout_timeout = absl::Minutes(10);
};

// A group and the answer its responses are scored against.
struct GroupTask {
  GroupAssignment assignment;
  std::string answer;
};

struct CollectedGroups {
  std::vector<Trajectory> trajectories;  // canonical order
  absl::Duration wait_time;              // until the last sample
  absl::Duration score_time;             // from then until the last score
};

// One trainer thread.
class RolloutClient {
 public:
  // `pool` and `control` must outlive it. Begins the job.
  RolloutClient(const RolloutJob& job, const RolloutClientOptions& options, RolloutPool* pool,
                RunControl* control, ScoreResponse score);
  // Ends the job: what is outstanding is abandoned.
  ~RolloutClient();
  RolloutClient(const RolloutClient&) = delete;
  RolloutClient& operator=(const RolloutClient&) = delete;

  void Publish(std::shared_ptr<const WeightSet> weights) { pool_->Publish(std::move(weights)); }
  void ReleaseWeightsBelow(uint64_t version) { pool_->ReleaseWeightsBelow(version); }

  // Fills in job epoch and deadline.
  void Assign(std::vector<GroupTask> tasks);

  // Waits for groups that were assigned. CANCELLED when the run is asked to pause, cancel or stop;
  // UNAVAILABLE, reason NO_ROLLOUT, when no rollout served for too long; DEADLINE_EXCEEDED, reason
  // BATCH_TIMEOUT; ABORTED, reason GROUP_LOST, for a group that was given up.
  absl::StatusOr<CollectedGroups> Collect(const std::vector<GroupKey>& groups);

  // Waits for a training group of those assigned, whichever is complete first, and takes every one
  // that is, in the order in which they became so. The same errors; BATCH_TIMEOUT counts from
  // `batch_start`, since when a batch is waited for.
  absl::StatusOr<CollectedGroups> CollectArrived(absl::Time batch_start);

  BufferCounters counters() const { return buffer_.counters(); }
  RolloutPoolStatus pool_status() const { return pool_->Status(); }

 private:
  // Why a wait since `start` for groups that are as far as `progress` says must end; OK: it goes
  // on.
  absl::Status CheckWait(const TrajectoryBuffer::Completeness& progress, absl::Time start,
                         absl::Time now);
  absl::Status CheckRollouts(absl::Time now);

  const RolloutJob job_;
  const RolloutClientOptions options_;
  RolloutPool* const pool_;
  RunControl* const control_;
  TrajectoryBuffer buffer_;
  // Of the rollouts, while the trainer waits.
  bool had_rollout_ = false;
  bool noticed_ = false;
  absl::Time without_since_ = absl::InfiniteFuture();
};

}  // namespace halfstep
