// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/rollout_client.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "halfstep/v1/training_job.pb.h"

namespace halfstep {
namespace {

// How often a wait looks at requests and rollouts; a complete batch ends it at once.
constexpr absl::Duration kPollInterval = absl::Milliseconds(100);

void EmitNotice(RunControl* control, const std::string& reason, const std::string& message) {
  LogWarning(message, {{"reason", reason}});
  v1::TrainingJobEvent event;
  event.mutable_notice()->set_reason(reason);
  event.mutable_notice()->set_message(message);
  control->Emit(std::move(event));
}

}  // namespace

RolloutClient::RolloutClient(const RolloutJob& job, const RolloutClientOptions& options,
                             RolloutPool* pool, RunControl* control, ScoreResponse score)
    : job_(job), options_(options), pool_(pool), control_(control), buffer_(std::move(score)) {
  pool_->BeginJob(job_, &buffer_);
}

RolloutClient::~RolloutClient() { pool_->EndJob(); }

void RolloutClient::Assign(std::vector<GroupTask> tasks) {
  const absl::Time deadline = absl::Now() + options_.group_timeout;
  std::vector<GroupAssignment> assignments;
  for (GroupTask& task : tasks) {
    task.assignment.job_epoch = job_.epoch;
    task.assignment.deadline = deadline;
    buffer_.Expect(task.assignment, std::move(task.answer));
    assignments.push_back(std::move(task.assignment));
  }
  pool_->Assign(std::move(assignments));
}

absl::StatusOr<CollectedGroups> RolloutClient::Collect(const std::vector<GroupKey>& groups) {
  const absl::Time start = absl::Now();
  absl::Time all_received = absl::InfiniteFuture();
  without_since_ = absl::InfiniteFuture();
  for (;;) {
    const TrajectoryBuffer::Completeness progress =
        buffer_.Await(groups, absl::Now() + kPollInterval);
    const absl::Time now = absl::Now();
    if (progress.received == progress.expected) all_received = std::min(all_received, now);
    if (progress.complete()) {
      return CollectedGroups{buffer_.Take(groups), all_received - start, now - all_received};
    }
    HALFSTEP_RETURN_IF_ERROR(CheckWait(progress, start, now));
  }
}

absl::StatusOr<CollectedGroups> RolloutClient::CollectArrived(absl::Time batch_start) {
  const absl::Time start = absl::Now();
  without_since_ = absl::InfiniteFuture();
  for (;;) {
    const TrajectoryBuffer::Arrivals arrivals = buffer_.AwaitArrivals(absl::Now() + kPollInterval);
    const absl::Time now = absl::Now();
    if (!arrivals.groups.empty()) {
      return CollectedGroups{buffer_.Take(arrivals.groups), now - start, absl::ZeroDuration()};
    }
    TrajectoryBuffer::Completeness progress = buffer_.MeasureTraining();
    progress.lost = arrivals.lost;
    HALFSTEP_RETURN_IF_ERROR(CheckWait(progress, batch_start, now));
  }
}

absl::Status RolloutClient::CheckWait(const TrajectoryBuffer::Completeness& progress,
                                      absl::Time start, absl::Time now) {
  if (!progress.lost.ok()) {
    return Error(
        absl::StatusCode::kAborted, "GROUP_LOST",
        absl::StrCat("a group was given up by every rollout that got it: ", progress.lost.message(),
                     "; look at the rollouts' logs and resume the job"));
  }
  if (control_->request() != RunRequest::kNone) {
    return absl::CancelledError("asked to stop while waiting for samples");
  }
  if (now - start > options_.batch_timeout) {
    return Error(
        absl::StatusCode::kDeadlineExceeded, "BATCH_TIMEOUT",
        absl::StrCat("after ", absl::FormatDuration(options_.batch_timeout), ", ",
                     progress.received, " of ", progress.expected, " samples have come and ",
                     progress.scored, " are scored; waiting for ", pool_->Status().waiting_for,
                     "; resume the job with more rollouts or a longer --batch-timeout"));
  }
  // Samples may all be there and only their scores missing: then no rollout is needed.
  return progress.received < progress.expected ? CheckRollouts(now) : absl::OkStatus();
}

absl::Status RolloutClient::CheckRollouts(absl::Time now) {
  const RolloutPoolStatus pool = pool_->Status();
  if (pool.rollouts_serving > 0) {
    if (noticed_) EmitNotice(control_, "ROLLOUT_BACK", "a rollout server serves again");
    had_rollout_ = true;
    noticed_ = false;
    without_since_ = absl::InfiniteFuture();
    return absl::OkStatus();
  }
  without_since_ = std::min(without_since_, now);
  const absl::Duration without = now - without_since_;
  if (!noticed_ && (had_rollout_ || without >= options_.join_grace)) {
    noticed_ = true;
    EmitNotice(
        control_, "NO_ROLLOUT",
        absl::StrCat("no rollout server serves this job; it pauses unless one comes within ",
                     absl::FormatDuration(options_.no_rollout_timeout), "; ", pool.waiting_for));
  }
  if (without < options_.no_rollout_timeout) return absl::OkStatus();
  return Error(absl::StatusCode::kUnavailable, "NO_ROLLOUT",
               absl::StrCat("no rollout server served for ", absl::FormatDuration(without),
                            "; start one and resume the job; ", pool.waiting_for));
}

}  // namespace halfstep
