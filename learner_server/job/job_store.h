// SPDX-License-Identifier: Apache-2.0
// Jobs, their events and request ids on the disk. What a call has written is durable when it
// returns.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "halfstep/v1/training_job.pb.h"
#include "learner_server/job/sqlite.h"

namespace halfstep {

// Thread-safe. Errors of every call: those of SqliteStatement::Step.
class JobStore {
 public:
  // Opens or creates the store in folder `dir`. FAILED_PRECONDITION (reason STATE_DIR_IN_USE) while
  // another process has it open.
  static absl::StatusOr<std::unique_ptr<JobStore>> Open(const std::string& dir);
  ~JobStore();

  // Ascends with every call over the life of the store; the first is 1.
  absl::StatusOr<uint64_t> NextEpoch();

  // Stores `job` at the end of the queue, with `event` as its first. When `request_id` is not empty
  // and known, stores nothing and returns the job that was created with it; otherwise returns
  // `job`.
  absl::StatusOr<v1::TrainingJob> Create(const v1::TrainingJob& job, const std::string& request_id,
                                         v1::TrainingJobEvent event);
  // The job created with `request_id`, if any.
  absl::StatusOr<std::optional<v1::TrainingJob>> FindRequest(const std::string& request_id);

  // NOT_FOUND (reason JOB_NOT_FOUND) names the job. `name` is "trainingJobs/{id}".
  absl::StatusOr<v1::TrainingJob> Get(const std::string& name);

  struct Page {
    std::vector<v1::TrainingJob> jobs;  // newest first
    int64_t next = 0;                   // `before` of the next page; 0: this is the last
  };
  // At most `limit` jobs, older than position `before`; 0 starts at the newest.
  absl::StatusOr<Page> List(int limit, int64_t before);

  // Jobs in `states`, in the order of their queue.
  absl::StatusOr<std::vector<v1::TrainingJob>> InStates(
      const std::vector<v1::TrainingJob::State>& states);

  // Replaces a job and appends `event`, if it is one, in one transaction. Returns the event's
  // cursor.
  absl::StatusOr<int64_t> Update(const v1::TrainingJob& job, v1::TrainingJobEvent event);
  // The same, and puts the job at the end of the queue.
  absl::StatusOr<int64_t> UpdateAndQueue(const v1::TrainingJob& job, v1::TrainingJobEvent event);

  // At most `limit` events with cursors above `cursor`, ascending.
  absl::StatusOr<std::vector<v1::TrainingJobEvent>> Events(const std::string& name, int64_t cursor,
                                                           int limit);

 private:
  JobStore(SqliteDatabase database, int lock_fd);
  absl::Status CreateTables();
  absl::StatusOr<int64_t> NextCounter(const std::string& name);
  absl::StatusOr<std::optional<v1::TrainingJob>> FindRequestLocked(const std::string& request_id);
  absl::StatusOr<int64_t> Append(const std::string& name, v1::TrainingJobEvent event);
  absl::Status Write(const v1::TrainingJob& job);

  mutable absl::Mutex mutex_;
  SqliteDatabase database_;
  const int lock_fd_;
};

}  // namespace halfstep
