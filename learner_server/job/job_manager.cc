// SPDX-License-Identifier: Apache-2.0
#include "learner_server/job/job_manager.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/logging.h"
#include "common/base/random_id.h"
#include "common/base/status_macros.h"
#include "common/metrics/learner_metrics.h"

namespace halfstep {
namespace {

using Job = v1::TrainingJob;

constexpr char kNamePrefix[] = "trainingJobs/";
constexpr char kPageTokenPrefix[] = "before-";
constexpr int kDefaultPageSize = 20;
constexpr int kMaxPageSize = 100;
constexpr size_t kMaxRequestIdBytes = 128;
// Events of the active job kept while the store cannot be written.
constexpr size_t kMaxUnwrittenEvents = 10'000;
constexpr absl::Duration kStoreRetryInterval = absl::Seconds(1);

void SetTime(absl::Time time, google::protobuf::Timestamp* out) {
  const int64_t nanos = absl::ToUnixNanos(time);
  out->set_seconds(nanos / 1'000'000'000);
  out->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
}

std::string IdOf(const Job& job) { return job.name().substr(sizeof(kNamePrefix) - 1); }

std::string NewJobId() { return "job-" + RandomUuid().substr(0, 8); }

absl::Status InvalidArgument(const std::string& reason, const std::string& field,
                             const std::string& message) {
  return WithFieldViolations(Error(absl::StatusCode::kInvalidArgument, reason, message),
                             {FieldViolation{field, message, 0, 0}});
}

absl::Status CheckName(const std::string& name) {
  if (absl::StartsWith(name, kNamePrefix) && name.size() > sizeof(kNamePrefix) - 1) {
    return absl::OkStatus();
  }
  return InvalidArgument(
      "BAD_JOB_NAME", "name",
      absl::StrCat("'", name, "' is not the name of a job: expected ", kNamePrefix, "{id}"));
}

absl::StatusOr<int64_t> ParsePageToken(const std::string& token) {
  int64_t before = 0;
  if (token.empty()) return before;
  if (absl::StartsWith(token, kPageTokenPrefix) &&
      absl::SimpleAtoi(token.substr(sizeof(kPageTokenPrefix) - 1), &before) && before > 0) {
    return before;
  }
  return InvalidArgument("BAD_PAGE_TOKEN", "page_token",
                         "this page token did not come from ListTrainingJobs");
}

JobEvent EventOf(const absl::StatusOr<RunResult>& result) {
  if (!result.ok()) return JobEvent::kRunFailed;
  switch (result->outcome) {
    case RunOutcome::kSucceeded:
      return JobEvent::kRunSucceeded;
    case RunOutcome::kPaused:
      return JobEvent::kRunPaused;
    case RunOutcome::kCancelled:
      return JobEvent::kRunCancelled;
    case RunOutcome::kStopped:
      break;
  }
  return JobEvent::kRunFailed;
}

// In line: new, resumed, or taken up again after a restart of the learner.
bool WaitsToRun(JobState state) {
  return state == Job::STATE_QUEUED || state == Job::STATE_STARTING;
}

// Reason and message that go with the end of a run.
ErrorReason WhyItEnded(const absl::StatusOr<RunResult>& result, JobEvent event,
                       std::string* message) {
  if (!result.ok()) {
    *message = std::string(result.status().message());
    const std::string reason = ReasonOf(result.status());
    return {reason.empty() ? absl::StatusCodeToString(result.status().code()) : reason, {}};
  }
  if (event == JobEvent::kRunFailed) {
    *message = "the run ended in a way that nobody had asked for";
    return {"INTERNAL", {}};
  }
  *message = result->message;
  return {result->reason, {}};
}

}  // namespace

// What a run sees of the manager.
class JobManager::Control : public RunControl {
 public:
  explicit Control(JobManager* manager) : manager_(manager) {}
  RunRequest request() const override { return manager_->RequestToRun(); }
  void Emit(v1::TrainingJobEvent event) override { manager_->OnRunEvent(std::move(event)); }
  void SetProgress(int64_t step, uint64_t policy_version) override {
    manager_->OnRunProgress(step, policy_version);
  }

 private:
  JobManager* const manager_;
};

JobManager::JobManager(JobManagerOptions options) : options_(std::move(options)) {}

JobManager::~JobManager() {
  Stop(absl::InfiniteDuration()).IgnoreError();
  if (thread_.joinable()) thread_.join();
}

void JobManager::Start() {
  absl::MutexLock lock(&mutex_);
  thread_ = std::thread(&JobManager::Loop, this);
}

absl::Status JobManager::Recover() {
  absl::MutexLock lock(&mutex_);
  HALFSTEP_ASSIGN_OR_RETURN(
      std::vector<Job> found,
      options_.store->InStates({Job::STATE_STARTING, Job::STATE_RUNNING, Job::STATE_PAUSING,
                                Job::STATE_CANCELLING, Job::STATE_QUEUED}));
  // The one that had the learner comes before those that waited.
  std::stable_partition(found.begin(), found.end(),
                        [](const Job& job) { return IsActive(job.state()); });
  for (Job& job : found) {
    const JobState next = *NextState(job.state(), JobEvent::kFoundAtStart);
    if (next != Job::STATE_QUEUED) {
      const auto event =
          SetState(job, next, "LEARNER_RESTARTED",
                   next == Job::STATE_STARTING
                       ? "the learner has restarted; the job goes on from its last checkpoint"
                       : "the learner has restarted; the job's last checkpoint stays");
      HALFSTEP_RETURN_IF_ERROR(options_.store->Update(job, event).status());
    }
    if (WaitsToRun(next)) queue_.push_back(job.name());
  }
  ExportState();
  return absl::OkStatus();
}

void JobManager::Loop() {
  for (;;) {
    Job job;
    uint64_t epoch = 0;
    {
      absl::MutexLock lock(&mutex_);
      const auto may_go_on = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stopping_ || !queue_.empty();
      };
      mutex_.Await(absl::Condition(&may_go_on));
      if (stopping_) break;
      const absl::StatusOr<uint64_t> activated = Activate();
      store_problem_ = activated.status();
      if (!activated.ok()) {
        LogError("cannot start a job", {{"error", activated.status().message()}});
        options_.clock->Await(mutex_, absl::Condition(&stopping_),
                              options_.clock->Now() + kStoreRetryInterval);
        continue;
      }
      epoch = *activated;
      if (epoch == 0) continue;
      job = *active_;
      ExportState();
    }
    NotifyListeners(job.name());
    LogInfo("job starts", {{"job", job.name()}, {"epoch", epoch}});
    Control control(this);
    v1::RunSummary summary;
    FinishRun(options_.runner->Run(IdOf(job), epoch, job.spec(), &control, &summary), summary);
    NotifyListeners(job.name());
  }
  loop_ended_.Notify();
}

absl::StatusOr<uint64_t> JobManager::Activate() {
  HALFSTEP_ASSIGN_OR_RETURN(Job job, options_.store->Get(queue_.front()));
  if (!WaitsToRun(job.state())) {
    queue_.pop_front();
    return 0;
  }
  HALFSTEP_ASSIGN_OR_RETURN(const uint64_t epoch, options_.store->NextEpoch());
  if (job.state() == Job::STATE_QUEUED) {
    const auto event = SetState(job, *NextState(job.state(), JobEvent::kPicked), "", "");
    HALFSTEP_RETURN_IF_ERROR(options_.store->Update(job, event).status());
  }
  queue_.pop_front();
  active_ = std::move(job);
  return epoch;
}

void JobManager::FinishRun(const absl::StatusOr<RunResult>& result, const v1::RunSummary& summary) {
  absl::MutexLock lock(&mutex_);
  *active_->mutable_summary() = summary;
  if (!stopping_ || !result.ok() || result->outcome != RunOutcome::kStopped) {
    JobEvent event = EventOf(result);
    std::optional<JobState> next = NextState(active_->state(), event);
    if (!next) {
      event = JobEvent::kRunFailed;
      next = NextState(active_->state(), event);
    }
    std::string message;
    const std::string reason = WhyItEnded(result, event, &message).reason;
    unwritten_.push_back(SetState(*active_, *next, reason, message));
    LogInfo("job ended", {{"job", active_->name()},
                          {"state", JobStateName(*next)},
                          {"reason", reason},
                          {"message", message}});
  }
  while (!Flush().ok()) {
    if (options_.clock->Await(mutex_, absl::Condition(&stopping_),
                              options_.clock->Now() + kStoreRetryInterval)) {
      break;
    }
  }
  unwritten_.clear();
  active_.reset();
  ExportState();
}

absl::StatusOr<Job> JobManager::Create(const v1::CreateTrainingJobRequest& request) {
  if (request.request_id().size() > kMaxRequestIdBytes) {
    return InvalidArgument("BAD_REQUEST_ID", "request_id",
                           "a request id is at most 128 bytes long");
  }
  HALFSTEP_ASSIGN_OR_RETURN(std::optional<Job> earlier,
                            options_.store->FindRequest(request.request_id()));
  if (earlier && !request.validate_only()) return Get(earlier->name());

  const std::string id = NewJobId();
  Job job;
  HALFSTEP_ASSIGN_OR_RETURN(*job.mutable_spec(), options_.resolve(id, request.spec()));
  HALFSTEP_RETURN_IF_ERROR(options_.runner->Check(job.spec()));
  if (request.validate_only()) return job;

  job.set_name(kNamePrefix + id);
  const auto event = SetState(job, Job::STATE_QUEUED, "", "");
  *job.mutable_create_time() = job.update_time();
  {
    absl::MutexLock lock(&mutex_);
    if (queue_.size() >= options_.max_unfinished_jobs) {
      return Error(
          absl::StatusCode::kResourceExhausted, "TOO_MANY_JOBS",
          absl::StrCat(queue_.size(), " jobs wait already; cancel some or come back later"));
    }
    HALFSTEP_ASSIGN_OR_RETURN(const Job stored,
                              options_.store->Create(job, request.request_id(), event));
    if (stored.name() != job.name()) return stored;
    queue_.push_back(job.name());
    ExportState();
  }
  return job;
}

absl::StatusOr<Job> JobManager::Get(const std::string& name) {
  HALFSTEP_RETURN_IF_ERROR(CheckName(name));
  absl::MutexLock lock(&mutex_);
  if (active_ && active_->name() == name) return *active_;
  return options_.store->Get(name);
}

absl::StatusOr<v1::ListTrainingJobsResponse> JobManager::List(
    const v1::ListTrainingJobsRequest& request) {
  if (request.page_size() < 0) {
    return InvalidArgument("BAD_PAGE_SIZE", "page_size", "a page size is not negative");
  }
  HALFSTEP_ASSIGN_OR_RETURN(const int64_t before, ParsePageToken(request.page_token()));
  const int limit =
      request.page_size() == 0 ? kDefaultPageSize : std::min(request.page_size(), kMaxPageSize);
  absl::MutexLock lock(&mutex_);
  HALFSTEP_ASSIGN_OR_RETURN(JobStore::Page page, options_.store->List(limit, before));
  v1::ListTrainingJobsResponse response;
  for (Job& job : page.jobs) {
    const bool active = active_ && active_->name() == job.name();
    *response.add_training_jobs() = active ? *active_ : std::move(job);
  }
  if (page.next > 0) response.set_next_page_token(absl::StrCat(kPageTokenPrefix, page.next));
  return response;
}

absl::StatusOr<Job> JobManager::Cancel(const std::string& name) {
  return Request(name, JobEvent::kCancelRequested, "cancelled");
}

absl::StatusOr<Job> JobManager::Pause(const std::string& name) {
  return Request(name, JobEvent::kPauseRequested, "paused");
}

absl::StatusOr<Job> JobManager::Resume(const std::string& name) {
  return Request(name, JobEvent::kResumeRequested, "resumed");
}

absl::StatusOr<Job> JobManager::Request(const std::string& name, JobEvent event,
                                        const std::string& verb) {
  HALFSTEP_RETURN_IF_ERROR(CheckName(name));
  absl::StatusOr<Job> changed;
  {
    absl::MutexLock lock(&mutex_);
    const bool active = active_ && active_->name() == name;
    Job job;
    if (active) {
      job = *active_;
    } else {
      HALFSTEP_ASSIGN_OR_RETURN(job, options_.store->Get(name));
    }
    const std::optional<JobState> next = NextState(job.state(), event);
    if (!next) {
      return WithReason(
          absl::FailedPreconditionError(absl::StrCat(
              "job ", name, " is ", JobStateName(job.state()), " and cannot be ", verb)),
          {"WRONG_JOB_STATE", {{"name", name}, {"state", JobStateName(job.state())}}});
    }
    if (*next == job.state()) return job;
    changed = active ? RequestOfActive(*next) : RequestOfWaiting(std::move(job), *next);
    HALFSTEP_RETURN_IF_ERROR(changed.status());
    ExportState();
  }
  NotifyListeners(name);
  return changed;
}

absl::StatusOr<Job> JobManager::RequestOfActive(JobState next) {
  const Job before = *active_;
  unwritten_.push_back(SetState(*active_, next, "", ""));
  const absl::Status written = Flush();
  if (written.ok()) return *active_;
  unwritten_.pop_back();
  *active_ = before;
  return written;
}

absl::StatusOr<Job> JobManager::RequestOfWaiting(Job job, JobState next) {
  // Nobody runs it who would have to stop first.
  if (next == Job::STATE_PAUSING) next = Job::STATE_PAUSED;
  if (next == Job::STATE_CANCELLING) next = Job::STATE_CANCELLED;
  const auto event = SetState(job, next, "", "");
  if (next == Job::STATE_QUEUED) {
    HALFSTEP_RETURN_IF_ERROR(options_.store->UpdateAndQueue(job, event).status());
    queue_.push_back(job.name());
  } else {
    HALFSTEP_RETURN_IF_ERROR(options_.store->Update(job, event).status());
    queue_.erase(std::remove(queue_.begin(), queue_.end(), job.name()), queue_.end());
  }
  return job;
}

RunRequest JobManager::RequestToRun() const {
  absl::MutexLock lock(&mutex_);
  if (active_->state() == Job::STATE_CANCELLING) return RunRequest::kCancel;
  if (stopping_) return RunRequest::kStop;
  if (active_->state() == Job::STATE_PAUSING) return RunRequest::kPause;
  return RunRequest::kNone;
}

void JobManager::OnRunEvent(v1::TrainingJobEvent event) {
  std::string name;
  {
    absl::MutexLock lock(&mutex_);
    name = active_->name();
    MarkRunning();
    SetTime(options_.clock->Now(), event.mutable_time());
    if (unwritten_.size() >= kMaxUnwrittenEvents) unwritten_.pop_front();
    unwritten_.push_back(std::move(event));
    Flush().IgnoreError();
  }
  NotifyListeners(name);
}

void JobManager::OnRunProgress(int64_t step, uint64_t policy_version) {
  std::string name;
  {
    absl::MutexLock lock(&mutex_);
    name = active_->name();
    active_->set_step(step);
    active_->set_policy_version(static_cast<int64_t>(policy_version));
    MarkRunning();
    Flush().IgnoreError();
  }
  NotifyListeners(name);
}

void JobManager::MarkRunning() {
  if (active_->state() != Job::STATE_STARTING) return;
  const JobState next = *NextState(active_->state(), JobEvent::kRunStarted);
  unwritten_.push_back(SetState(*active_, next, "", ""));
  ExportState();
}

absl::Status JobManager::Flush() {
  while (!unwritten_.empty()) {
    const absl::Status written = options_.store->Update(*active_, unwritten_.front()).status();
    if (!written.ok()) {
      if (store_problem_.ok()) {
        LogError("job events wait until the store can be written",
                 {{"job", active_->name()}, {"error", written.message()}});
      }
      store_problem_ = written;
      return written;
    }
    unwritten_.pop_front();
  }
  store_problem_ = absl::OkStatus();
  return absl::OkStatus();
}

v1::TrainingJobEvent JobManager::SetState(Job& job, JobState state, const std::string& reason,
                                          const std::string& message) const {
  job.set_state(state);
  job.set_reason(reason);
  job.set_message(message);
  SetTime(options_.clock->Now(), job.mutable_update_time());
  v1::TrainingJobEvent event;
  *event.mutable_time() = job.update_time();
  event.mutable_state_changed()->set_state(state);
  event.mutable_state_changed()->set_reason(reason);
  event.mutable_state_changed()->set_message(message);
  return event;
}

absl::StatusOr<JobManager::EventBatch> JobManager::EventsAfter(const std::string& name,
                                                               int64_t cursor, int limit) {
  HALFSTEP_RETURN_IF_ERROR(CheckName(name));
  // State before events: a finished job that has given the learner back has written its last one.
  bool finished = false;
  {
    absl::MutexLock lock(&mutex_);
    if (!active_ || active_->name() != name) {
      HALFSTEP_ASSIGN_OR_RETURN(const Job job, options_.store->Get(name));
      finished = IsFinished(job.state());
    }
  }
  EventBatch batch;
  HALFSTEP_ASSIGN_OR_RETURN(batch.events, options_.store->Events(name, cursor, limit));
  batch.last = finished && static_cast<int>(batch.events.size()) < limit;
  return batch;
}

absl::Status JobManager::Listen(const std::string& name, std::weak_ptr<JobListener> listener) {
  HALFSTEP_RETURN_IF_ERROR(Get(name).status());
  absl::MutexLock lock(&listeners_mutex_);
  for (auto it = listeners_.begin(); it != listeners_.end();) {
    it = it->second.expired() ? listeners_.erase(it) : std::next(it);
  }
  if (listeners_.size() >= options_.max_listeners) {
    return Error(absl::StatusCode::kResourceExhausted, "TOO_MANY_WATCHERS",
                 absl::StrCat(listeners_.size(), " watchers are attached already; end some first"));
  }
  listeners_.emplace(name, std::move(listener));
  return absl::OkStatus();
}

void JobManager::NotifyListeners(const std::string& name) {
  std::vector<std::shared_ptr<JobListener>> listeners;
  {
    absl::MutexLock lock(&listeners_mutex_);
    const auto [begin, end] = listeners_.equal_range(name);
    for (auto it = begin; it != end; ++it) {
      if (auto listener = it->second.lock()) listeners.push_back(std::move(listener));
    }
  }
  for (const auto& listener : listeners) listener->OnNews();
}

void JobManager::ExportState() {
  if (options_.metrics == nullptr) return;
  std::string state;
  if (active_) {
    state = JobStateName(active_->state());
  } else {
    auto shown = options_.store->InStates({Job::STATE_PAUSED, Job::STATE_QUEUED});
    // Nothing waits: how it ended stays to be seen.
    if (shown.ok() && shown->empty()) {
      auto newest = options_.store->List(1, 0);
      if (newest.ok()) shown = std::move(newest->jobs);
    }
    if (shown.ok() && !shown->empty()) state = JobStateName(shown->back().state());
  }
  std::transform(state.begin(), state.end(), state.begin(), absl::ascii_tolower);
  options_.metrics->job_state.SetOnly(state);
}

absl::Status JobManager::Stop(absl::Duration grace) {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    if (!thread_.joinable()) return absl::OkStatus();
  }
  if (loop_ended_.WaitForNotificationWithTimeout(grace)) return absl::OkStatus();
  return absl::DeadlineExceededError("the running job has not stopped within its grace time");
}

absl::Status JobManager::Alive() const {
  if (!loop_ended_.HasBeenNotified()) return absl::OkStatus();
  return absl::UnavailableError("the learner has stopped running jobs");
}

absl::Status JobManager::Health() const {
  absl::MutexLock lock(&mutex_);
  return store_problem_;
}

}  // namespace halfstep
