// SPDX-License-Identifier: Apache-2.0
// Tables: jobs (one row per job, the message as a blob beside what queries need), events (cursor
// ascending per job), requests (request id to job), counters (epoch, queue position).
#include "learner_server/job/job_store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

constexpr int kSchemaVersion = 1;
constexpr char kTables[] = R"(
  CREATE TABLE IF NOT EXISTS jobs (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    name BLOB NOT NULL UNIQUE,
    state INTEGER NOT NULL,
    queue_position INTEGER NOT NULL,
    job BLOB NOT NULL);
  CREATE TABLE IF NOT EXISTS events (
    name BLOB NOT NULL,
    cursor INTEGER NOT NULL,
    event BLOB NOT NULL,
    PRIMARY KEY (name, cursor)) WITHOUT ROWID;
  CREATE TABLE IF NOT EXISTS requests (
    request_id BLOB PRIMARY KEY,
    name BLOB NOT NULL) WITHOUT ROWID;
  CREATE TABLE IF NOT EXISTS counters (
    name BLOB PRIMARY KEY,
    value INTEGER NOT NULL) WITHOUT ROWID;
)";

// Holds the folder for this process until the descriptor is closed; the file says who holds it.
absl::StatusOr<int> LockFolder(const std::string& dir) {
  const std::string path = dir + "/lock";
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return FileError(errno, "open", path);
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    char holder[32] = {};
    const ssize_t size = read(fd, holder, sizeof holder - 1);
    close(fd);
    return WithReason(absl::FailedPreconditionError(absl::StrCat(
                          "state folder ", dir, " is in use by the learner with process id ",
                          size > 0 ? std::string(absl::StripAsciiWhitespace(holder)) : "unknown",
                          "; stop it, or give this one its own --state")),
                      {"STATE_DIR_IN_USE", {{"state_dir", dir}}});
  }
  const std::string pid = absl::StrCat(getpid(), "\n");
  // Only the text of an error message depends on these.
  if (ftruncate(fd, 0) != 0 || pwrite(fd, pid.data(), pid.size(), 0) < 0) errno = 0;
  return fd;
}

absl::StatusOr<v1::TrainingJob> Parse(const std::string& bytes) {
  v1::TrainingJob job;
  if (job.ParseFromString(bytes)) return job;
  return Error(absl::StatusCode::kDataLoss, "JOB_STORE_CORRUPT",
               "job store: a job cannot be read; move the file away to start with an empty store");
}

absl::StatusOr<std::vector<v1::TrainingJob>> ReadJobs(SqliteStatement statement) {
  std::vector<v1::TrainingJob> jobs;
  for (;;) {
    HALFSTEP_ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) return jobs;
    HALFSTEP_ASSIGN_OR_RETURN(v1::TrainingJob job, Parse(statement.Bytes(0)));
    jobs.push_back(std::move(job));
  }
}

}  // namespace

JobStore::JobStore(SqliteDatabase database, int lock_fd)
    : database_(std::move(database)), lock_fd_(lock_fd) {}

JobStore::~JobStore() { close(lock_fd_); }

absl::StatusOr<std::unique_ptr<JobStore>> JobStore::Open(const std::string& dir) {
  std::error_code problem;
  std::filesystem::create_directories(dir, problem);
  if (problem) return FileError(problem.value(), "create", dir);
  HALFSTEP_ASSIGN_OR_RETURN(const int lock_fd, LockFolder(dir));
  auto database = SqliteDatabase::Open(dir + "/jobs.sqlite");
  if (!database.ok()) {
    close(lock_fd);
    return database.status();
  }
  std::unique_ptr<JobStore> store(new JobStore(*std::move(database), lock_fd));
  HALFSTEP_RETURN_IF_ERROR(store->CreateTables());
  return store;
}

absl::Status JobStore::CreateTables() {
  absl::MutexLock lock(&mutex_);
  int64_t version = 0;
  {
    SqliteStatement statement = database_.Prepare("PRAGMA user_version");
    HALFSTEP_RETURN_IF_ERROR(statement.Run());
    version = statement.Integer(0);
  }
  if (version > kSchemaVersion) {
    return Error(absl::StatusCode::kFailedPrecondition, "JOB_STORE_TOO_NEW",
                 absl::StrCat("the job store was written by a newer halfstep (schema ", version,
                              ", this one knows ", kSchemaVersion, ")"));
  }
  HALFSTEP_RETURN_IF_ERROR(database_.Execute(kTables));
  return database_.Execute(absl::StrCat("PRAGMA user_version=", kSchemaVersion));
}

absl::StatusOr<int64_t> JobStore::NextCounter(const std::string& name) {
  SqliteStatement statement = database_.Prepare(
      "INSERT INTO counters VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1 "
      "RETURNING value");
  HALFSTEP_RETURN_IF_ERROR(statement.Bind(name).Run());
  const int64_t value = statement.Integer(0);
  HALFSTEP_RETURN_IF_ERROR(statement.Run());
  return value;
}

absl::StatusOr<uint64_t> JobStore::NextEpoch() {
  absl::MutexLock lock(&mutex_);
  SqliteTransaction transaction(database_);
  HALFSTEP_ASSIGN_OR_RETURN(const int64_t epoch, NextCounter("epoch"));
  HALFSTEP_RETURN_IF_ERROR(transaction.Commit());
  return static_cast<uint64_t>(epoch);
}

absl::StatusOr<std::optional<v1::TrainingJob>> JobStore::FindRequestLocked(
    const std::string& request_id) {
  if (request_id.empty()) return std::optional<v1::TrainingJob>();
  SqliteStatement statement =
      database_.Prepare("SELECT job FROM jobs JOIN requests USING (name) WHERE request_id = ?");
  statement.Bind(request_id);
  HALFSTEP_ASSIGN_OR_RETURN(std::vector<v1::TrainingJob> jobs, ReadJobs(std::move(statement)));
  if (jobs.empty()) return std::optional<v1::TrainingJob>();
  return std::optional<v1::TrainingJob>(std::move(jobs[0]));
}

absl::StatusOr<std::optional<v1::TrainingJob>> JobStore::FindRequest(
    const std::string& request_id) {
  absl::MutexLock lock(&mutex_);
  return FindRequestLocked(request_id);
}

absl::StatusOr<v1::TrainingJob> JobStore::Create(const v1::TrainingJob& job,
                                                 const std::string& request_id,
                                                 v1::TrainingJobEvent event) {
  absl::MutexLock lock(&mutex_);
  SqliteTransaction transaction(database_);
  HALFSTEP_ASSIGN_OR_RETURN(std::optional<v1::TrainingJob> earlier, FindRequestLocked(request_id));
  if (earlier) return *std::move(earlier);
  HALFSTEP_ASSIGN_OR_RETURN(const int64_t queue_position, NextCounter("queue"));
  HALFSTEP_RETURN_IF_ERROR(
      database_.Prepare("INSERT INTO jobs (name, state, queue_position, job) VALUES (?, ?, ?, ?)")
          .Bind(job.name())
          .Bind(job.state())
          .Bind(queue_position)
          .Bind(job.SerializeAsString())
          .Run());
  if (!request_id.empty()) {
    HALFSTEP_RETURN_IF_ERROR(database_.Prepare("INSERT INTO requests VALUES (?, ?)")
                                 .Bind(request_id)
                                 .Bind(job.name())
                                 .Run());
  }
  HALFSTEP_RETURN_IF_ERROR(Append(job.name(), std::move(event)).status());
  HALFSTEP_RETURN_IF_ERROR(transaction.Commit());
  return job;
}

absl::StatusOr<v1::TrainingJob> JobStore::Get(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  SqliteStatement statement = database_.Prepare("SELECT job FROM jobs WHERE name = ?");
  statement.Bind(name);
  HALFSTEP_ASSIGN_OR_RETURN(const std::vector<v1::TrainingJob> jobs,
                            ReadJobs(std::move(statement)));
  if (!jobs.empty()) return jobs[0];
  return WithReason(absl::NotFoundError(absl::StrCat("there is no job '", name,
                                                     "'; ListTrainingJobs tells which there are")),
                    {"JOB_NOT_FOUND", {{"name", name}}});
}

absl::StatusOr<JobStore::Page> JobStore::List(int limit, int64_t before) {
  absl::MutexLock lock(&mutex_);
  SqliteStatement statement = database_.Prepare(
      "SELECT job, position FROM jobs WHERE ?1 = 0 OR position < ?1 ORDER BY position DESC LIMIT "
      "?2");
  statement.Bind(before).Bind(limit + 1);
  Page page;
  int64_t last = 0;
  for (;;) {
    HALFSTEP_ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) return page;
    if (static_cast<int>(page.jobs.size()) == limit) {
      page.next = last;
      return page;
    }
    HALFSTEP_ASSIGN_OR_RETURN(v1::TrainingJob job, Parse(statement.Bytes(0)));
    page.jobs.push_back(std::move(job));
    last = statement.Integer(1);
  }
}

absl::StatusOr<std::vector<v1::TrainingJob>> JobStore::InStates(
    const std::vector<v1::TrainingJob::State>& states) {
  absl::MutexLock lock(&mutex_);
  return ReadJobs(
      database_.Prepare(absl::StrCat("SELECT job FROM jobs WHERE state IN (",
                                     absl::StrJoin(states, ","), ") ORDER BY queue_position")));
}

absl::Status JobStore::Write(const v1::TrainingJob& job) {
  return database_.Prepare("UPDATE jobs SET state = ?, job = ? WHERE name = ?")
      .Bind(job.state())
      .Bind(job.SerializeAsString())
      .Bind(job.name())
      .Run();
}

absl::StatusOr<int64_t> JobStore::Append(const std::string& name, v1::TrainingJobEvent event) {
  SqliteStatement newest =
      database_.Prepare("SELECT COALESCE(MAX(cursor), 0) FROM events WHERE name = ?");
  HALFSTEP_RETURN_IF_ERROR(newest.Bind(name).Run());
  const int64_t cursor = newest.Integer(0) + 1;
  event.set_cursor(cursor);
  HALFSTEP_RETURN_IF_ERROR(database_.Prepare("INSERT INTO events VALUES (?, ?, ?)")
                               .Bind(name)
                               .Bind(cursor)
                               .Bind(event.SerializeAsString())
                               .Run());
  return cursor;
}

absl::StatusOr<int64_t> JobStore::Update(const v1::TrainingJob& job, v1::TrainingJobEvent event) {
  absl::MutexLock lock(&mutex_);
  SqliteTransaction transaction(database_);
  HALFSTEP_RETURN_IF_ERROR(Write(job));
  HALFSTEP_ASSIGN_OR_RETURN(const int64_t cursor, Append(job.name(), std::move(event)));
  HALFSTEP_RETURN_IF_ERROR(transaction.Commit());
  return cursor;
}

absl::StatusOr<int64_t> JobStore::UpdateAndQueue(const v1::TrainingJob& job,
                                                 v1::TrainingJobEvent event) {
  absl::MutexLock lock(&mutex_);
  SqliteTransaction transaction(database_);
  HALFSTEP_ASSIGN_OR_RETURN(const int64_t position, NextCounter("queue"));
  HALFSTEP_RETURN_IF_ERROR(database_.Prepare("UPDATE jobs SET queue_position = ? WHERE name = ?")
                               .Bind(position)
                               .Bind(job.name())
                               .Run());
  HALFSTEP_RETURN_IF_ERROR(Write(job));
  HALFSTEP_ASSIGN_OR_RETURN(const int64_t cursor, Append(job.name(), std::move(event)));
  HALFSTEP_RETURN_IF_ERROR(transaction.Commit());
  return cursor;
}

absl::StatusOr<std::vector<v1::TrainingJobEvent>> JobStore::Events(const std::string& name,
                                                                   int64_t cursor, int limit) {
  absl::MutexLock lock(&mutex_);
  SqliteStatement statement = database_.Prepare(
      "SELECT event FROM events WHERE name = ? AND cursor > ? ORDER BY cursor LIMIT ?");
  statement.Bind(name).Bind(cursor).Bind(limit);
  std::vector<v1::TrainingJobEvent> events;
  for (;;) {
    HALFSTEP_ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) return events;
    if (!events.emplace_back().ParseFromString(statement.Bytes(0))) {
      return Error(absl::StatusCode::kDataLoss, "JOB_STORE_CORRUPT",
                   absl::StrCat("job store: an event of ", name, " cannot be read"));
    }
  }
}

}  // namespace halfstep
