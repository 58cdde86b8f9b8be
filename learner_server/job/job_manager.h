// SPDX-License-Identifier: Apache-2.0
// Decides what runs: one job at a time on its own thread, the others wait in line; what it has said
// is in the store before it is so.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/base/clock.h"
#include "halfstep/v1/training_job.pb.h"
#include "learner_server/job/job_runner.h"
#include "learner_server/job/job_state.h"
#include "learner_server/job/job_store.h"

namespace halfstep {

struct LearnerMetrics;

// Woken when a job has news. Called from any thread, several at a time, without locks held.
class JobListener {
 public:
  virtual ~JobListener() = default;
  virtual void OnNews() = 0;
};

struct JobManagerOptions {
  JobStore* store = nullptr;
  JobRunner* runner = nullptr;
  // Fills in the defaults of a new job's specification and finds every mistake (field violations).
  std::function<absl::StatusOr<v1::TrainingJobSpec>(const std::string& job_id,
                                                    const v1::TrainingJobSpec&)>
      resolve;
  const Clock* clock = &Clock::Real();
  LearnerMetrics* metrics = nullptr;  // may be null
  size_t max_unfinished_jobs = 1000;
  size_t max_listeners = 256;
};

// Thread-safe. What `options` points to must outlive it.
class JobManager {
 public:
  explicit JobManager(JobManagerOptions options);
  // Stops first, waiting as long as the run takes to notice.
  ~JobManager();

  // Takes up what the store holds: a job that was running goes on first, then the queue. Call once,
  // before any other call.
  absl::Status Recover();
  // Begins to run jobs. Call once, after Recover.
  void Start();

  // Validates and enqueues. The same request id again gives the job of the first call. With
  // `validate_only` nothing is stored and the job has no name. INVALID_ARGUMENT carries all
  // violations; RESOURCE_EXHAUSTED (reason TOO_MANY_JOBS) when too many jobs are unfinished.
  absl::StatusOr<v1::TrainingJob> Create(const v1::CreateTrainingJobRequest& request);

  absl::StatusOr<v1::TrainingJob> Get(const std::string& name);
  absl::StatusOr<v1::ListTrainingJobsResponse> List(const v1::ListTrainingJobsRequest& request);

  // FAILED_PRECONDITION (reason WRONG_JOB_STATE) when the job's state does not allow it.
  absl::StatusOr<v1::TrainingJob> Cancel(const std::string& name);
  absl::StatusOr<v1::TrainingJob> Pause(const std::string& name);
  absl::StatusOr<v1::TrainingJob> Resume(const std::string& name);

  struct EventBatch {
    std::vector<v1::TrainingJobEvent> events;
    bool last = false;  // the job is finished: no event follows these
  };
  // At most `limit` events after `cursor`.
  absl::StatusOr<EventBatch> EventsAfter(const std::string& name, int64_t cursor, int limit);
  // Calls `listener` from here on whenever `name` has events, until it is gone. NOT_FOUND;
  // RESOURCE_EXHAUSTED (reason TOO_MANY_WATCHERS).
  absl::Status Listen(const std::string& name, std::weak_ptr<JobListener> listener);

  // Asks the run to stop, leaves its job as it is for the next start, and starts no other.
  // DEADLINE_EXCEEDED when the run has not stopped by then.
  absl::Status Stop(absl::Duration grace);

  // Why the manager cannot do its work at present, such as a full disk; OK when it can. It gets
  // well by itself once the store can be written.
  absl::Status Health() const;
  // Not OK when jobs will never run again in this process: only another one helps.
  absl::Status Alive() const;

 private:
  class Control;

  void Loop();
  // Takes the first of the queue: the epoch of its run, 0 when it does not wait to be run any more.
  // An error when the store cannot be written; the queue is then as it was.
  absl::StatusOr<uint64_t> Activate() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FinishRun(const absl::StatusOr<RunResult>& result, const v1::RunSummary& summary);
  absl::StatusOr<v1::TrainingJob> Request(const std::string& name, JobEvent event,
                                          const std::string& verb);
  absl::StatusOr<v1::TrainingJob> RequestOfActive(JobState next)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<v1::TrainingJob> RequestOfWaiting(v1::TrainingJob job, JobState next)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // What the run of the active job says and asks (RunControl).
  void OnRunEvent(v1::TrainingJobEvent event);
  void OnRunProgress(int64_t step, uint64_t policy_version);
  RunRequest RequestToRun() const;
  void MarkRunning() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Writes `unwritten_` in order; on failure what is left stays for the next attempt.
  absl::Status Flush() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  v1::TrainingJobEvent SetState(v1::TrainingJob& job, JobState state, const std::string& reason,
                                const std::string& message) const;
  void NotifyListeners(const std::string& name);
  void ExportState() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const JobManagerOptions options_;
  mutable absl::Mutex mutex_;
  std::deque<std::string> queue_ ABSL_GUARDED_BY(mutex_);  // names of the jobs that wait
  // The job that has the learner, ahead of the store by what `unwritten_` holds.
  std::optional<v1::TrainingJob> active_ ABSL_GUARDED_BY(mutex_);
  std::deque<v1::TrainingJobEvent> unwritten_ ABSL_GUARDED_BY(mutex_);
  absl::Status store_problem_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Notification loop_ended_;
  std::thread thread_;

  absl::Mutex listeners_mutex_;
  std::multimap<std::string, std::weak_ptr<JobListener>> listeners_
      ABSL_GUARDED_BY(listeners_mutex_);
};

}  // namespace halfstep
