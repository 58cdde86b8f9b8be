// SPDX-License-Identifier: Apache-2.0
#include "learner_server/job_service.h"

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <list>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/bounded_queue.h"
#include "common/base/error_reason.h"
#include "common/rpc/status.h"
#include "halfstep/v1/training_job.grpc.pb.h"
#include "learner_server/job/job_manager.h"

namespace halfstep {
namespace {

constexpr int kWorkers = 2;
constexpr size_t kMaxWaitingRequests = 256;
constexpr size_t kMaxWaitingCreations = 16;
// Events read from the store at a time for one watcher.
constexpr int kEventsPerRead = 64;

absl::Status Stopping() {
  return Error(absl::StatusCode::kUnavailable, "LEARNER_STOPPING",
               "the learner is stopping; attach again with the last cursor seen");
}

// One watch, alive from its call until OnDone. At most one write is under way; news that come
// meanwhile are found when it is done.
class Watch : public grpc::ServerWriteReactor<v1::TrainingJobEvent>, public JobListener {
 public:
  // Starts writing; the result lives by itself.
  static std::shared_ptr<Watch> Begin(JobManager* manager,
                                      const v1::WatchTrainingJobRequest& request) {
    auto watch = std::shared_ptr<Watch>(new Watch(manager, request));
    watch->self_ = watch;
    const absl::Status listening = manager->Listen(request.name(), watch);
    if (listening.ok()) {
      watch->Advance();
    } else {
      watch->End(listening);
    }
    return watch;
  }

  void OnNews() override { Advance(); }

  void End(const absl::Status& status) {
    absl::MutexLock lock(&mutex_);
    EndLocked(status);
  }

  void OnWriteDone(bool ok) override {
    {
      absl::MutexLock lock(&mutex_);
      writing_ = false;
      if (!ok) EndLocked(absl::CancelledError("the client has gone"));
      if (to_end_) {
        EndLocked(*to_end_);
        return;
      }
    }
    Advance();
  }

  void OnCancel() override { End(absl::CancelledError("the client has gone")); }

  void OnDone() override { self_.reset(); }

 private:
  Watch(JobManager* manager, const v1::WatchTrainingJobRequest& request)
      : manager_(manager), name_(request.name()), cursor_(request.cursor()) {}

  // Writes the next event there is; ends after the last of a finished job.
  void Advance() {
    absl::MutexLock lock(&mutex_);
    if (writing_ || ended_) return;
    if (waiting_.empty()) {
      auto batch = manager_->EventsAfter(name_, cursor_, kEventsPerRead);
      if (!batch.ok()) return EndLocked(batch.status());
      if (batch->events.empty() && batch->last) return EndLocked(absl::OkStatus());
      for (auto& event : batch->events) waiting_.push_back(std::move(event));
    }
    if (waiting_.empty()) return;
    current_ = std::move(waiting_.front());
    waiting_.pop_front();
    cursor_ = current_.cursor();
    writing_ = true;
    StartWrite(&current_);
  }

  // gRPC wants a write to be done before the end.
  void EndLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (ended_) return;
    if (writing_) {
      if (!to_end_) to_end_ = status;
      return;
    }
    ended_ = true;
    Finish(ToGrpcStatus(status));
  }

  JobManager* const manager_;
  const std::string name_;
  std::shared_ptr<Watch> self_;
  absl::Mutex mutex_;
  int64_t cursor_ ABSL_GUARDED_BY(mutex_);
  std::deque<v1::TrainingJobEvent> waiting_ ABSL_GUARDED_BY(mutex_);
  v1::TrainingJobEvent current_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> to_end_ ABSL_GUARDED_BY(mutex_);
};

// A watch that ends before it begins.
class RefusedWatch : public grpc::ServerWriteReactor<v1::TrainingJobEvent> {
 public:
  explicit RefusedWatch(const absl::Status& status) { Finish(ToGrpcStatus(status)); }
  void OnDone() override { delete this; }
};

}  // namespace

class JobService::Service : public v1::TrainingJobService::CallbackService {
 public:
  explicit Service(JobManager* manager)
      : manager_(manager),
        requests_("job requests", QueueLimits{kMaxWaitingRequests}),
        creations_("new jobs", QueueLimits{kMaxWaitingCreations}) {
    for (int i = 0; i < kWorkers; ++i) workers_.emplace_back([this] { Work(requests_); });
    workers_.emplace_back([this] { Work(creations_); });
  }

  ~Service() override {
    requests_.Close();
    creations_.Close();
    for (std::thread& worker : workers_) worker.join();
  }

  grpc::ServerUnaryReactor* CreateTrainingJob(grpc::CallbackServerContext* context,
                                              const v1::CreateTrainingJobRequest* request,
                                              v1::TrainingJob* response) override {
    return Answer(creations_, context, response,
                  [this, request] { return manager_->Create(*request); });
  }
  grpc::ServerUnaryReactor* GetTrainingJob(grpc::CallbackServerContext* context,
                                           const v1::GetTrainingJobRequest* request,
                                           v1::TrainingJob* response) override {
    return Answer(requests_, context, response,
                  [this, request] { return manager_->Get(request->name()); });
  }
  grpc::ServerUnaryReactor* ListTrainingJobs(grpc::CallbackServerContext* context,
                                             const v1::ListTrainingJobsRequest* request,
                                             v1::ListTrainingJobsResponse* response) override {
    return Answer(requests_, context, response,
                  [this, request] { return manager_->List(*request); });
  }
  grpc::ServerUnaryReactor* CancelTrainingJob(grpc::CallbackServerContext* context,
                                              const v1::CancelTrainingJobRequest* request,
                                              v1::TrainingJob* response) override {
    return Answer(requests_, context, response,
                  [this, request] { return manager_->Cancel(request->name()); });
  }
  grpc::ServerUnaryReactor* PauseTrainingJob(grpc::CallbackServerContext* context,
                                             const v1::PauseTrainingJobRequest* request,
                                             v1::TrainingJob* response) override {
    return Answer(requests_, context, response,
                  [this, request] { return manager_->Pause(request->name()); });
  }
  grpc::ServerUnaryReactor* ResumeTrainingJob(grpc::CallbackServerContext* context,
                                              const v1::ResumeTrainingJobRequest* request,
                                              v1::TrainingJob* response) override {
    return Answer(requests_, context, response,
                  [this, request] { return manager_->Resume(request->name()); });
  }

  grpc::ServerWriteReactor<v1::TrainingJobEvent>* WatchTrainingJob(
      grpc::CallbackServerContext*, const v1::WatchTrainingJobRequest* request) override {
    absl::MutexLock lock(&watches_mutex_);
    if (stopping_) return new RefusedWatch(Stopping());
    watches_.remove_if([](const std::weak_ptr<Watch>& watch) { return watch.expired(); });
    const std::shared_ptr<Watch> watch = Watch::Begin(manager_, *request);
    watches_.push_back(watch);
    return watch.get();
  }

  void EndWatches() {
    std::list<std::weak_ptr<Watch>> watches;
    {
      absl::MutexLock lock(&watches_mutex_);
      stopping_ = true;
      watches.swap(watches_);
    }
    for (const auto& weak : watches) {
      if (const auto watch = weak.lock()) watch->End(Stopping());
    }
  }

 private:
  using Tasks = BoundedQueue<std::function<void()>>;

  // Runs `call` on a worker of `tasks` and finishes with what it returns. Request and response live
  // until then.
  template <class Response, class Call>
  grpc::ServerUnaryReactor* Answer(Tasks& tasks, grpc::CallbackServerContext* context,
                                   Response* response, Call call) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    std::function<void()> task = [reactor, response, call] {
      auto result = call();
      if (result.ok()) *response = *std::move(result);
      reactor->Finish(ToGrpcStatus(result.status()));
    };
    if (!tasks.TryPush(task)) {
      reactor->Finish(ToGrpcStatus(Error(absl::StatusCode::kResourceExhausted, "LEARNER_BUSY",
                                         "too many job requests wait; try again")));
    }
    return reactor;
  }

  static void Work(Tasks& tasks) {
    for (;;) {
      const auto task = tasks.Pop(absl::InfiniteFuture());
      if (!task.ok()) return;
      (*task)();
    }
  }

  JobManager* const manager_;
  Tasks requests_;
  Tasks creations_;  // apart: the data of a new job may take long to read
  std::vector<std::thread> workers_;
  absl::Mutex watches_mutex_;
  std::list<std::weak_ptr<Watch>> watches_ ABSL_GUARDED_BY(watches_mutex_);
  bool stopping_ ABSL_GUARDED_BY(watches_mutex_) = false;
};

JobService::JobService(JobManager* manager) : service_(std::make_unique<Service>(manager)) {}

JobService::~JobService() = default;

HostedService JobService::hosted() {
  return {service_.get(), v1::TrainingJobService::service_full_name()};
}

void JobService::EndWatches() { service_->EndWatches(); }

}  // namespace halfstep
