// SPDX-License-Identifier: Apache-2.0
// A run that does what the test tells it, and a watcher that sees a job's events as a client would.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/error_reason.h"
#include "kernels/check.h"
#include "learner_server/job/job_manager.h"

namespace halfstep {

inline constexpr absl::Duration kTestPatience = absl::Seconds(30);

// Thread-safe.
class FakeRunner : public JobRunner {
 public:
  struct RunInProgress {
    std::string job_id;
    uint64_t epoch = 0;
    RunControl* control = nullptr;
  };

  absl::StatusOr<RunResult> Run(const std::string& job_id, uint64_t epoch,
                                const v1::TrainingJobSpec&, RunControl* control,
                                v1::RunSummary* summary) override {
    absl::MutexLock lock(&mutex_);
    running_ = {job_id, epoch, control};
    ++runs_;
    for (;;) {
      const auto woken = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return result_.has_value() || poked_;
      };
      mutex_.Await(absl::Condition(&woken));
      poked_ = false;
      std::optional<RunResult> asked = Obey(control->request());
      if (!result_ && !asked) continue;
      const absl::StatusOr<RunResult> result = result_ ? *result_ : *asked;
      result_.reset();
      running_.reset();
      summary->set_output_dir("runs/" + job_id);
      return result;
    }
  }

  absl::Status Check(const v1::TrainingJobSpec& spec) override {
    if (spec.model() == "slow") AwaitLetGo();
    if (spec.model() != "missing") return absl::OkStatus();
    return WithFieldViolations(
        Error(absl::StatusCode::kInvalidArgument, "BAD_SPEC", "no such model"),
        {{"model", "no such folder", 0, 0}, {"data.train", "no such file", 0, 0}});
  }

  // Waits until `count` runs have begun in all and one is in progress; returns it.
  RunInProgress WaitForRun(int count) {
    const auto begun = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return runs_ >= count && running_.has_value();
    };
    absl::MutexLock lock(&mutex_);
    HALFSTEP_CHECK(mutex_.AwaitWithTimeout(absl::Condition(&begun), kTestPatience));
    return *running_;
  }

  // Ends the run in progress, or the next one.
  void Finish(absl::StatusOr<RunResult> result) {
    absl::MutexLock lock(&mutex_);
    result_ = std::move(result);
  }

  // Lets the run look at what is requested of it, and do it.
  void Poke() {
    absl::MutexLock lock(&mutex_);
    poked_ = true;
  }

  // A check of model "slow" waits for LetGo; WaitForCheck waits until there is one.
  void WaitForCheck() {
    absl::MutexLock lock(&mutex_);
    HALFSTEP_CHECK(mutex_.AwaitWithTimeout(absl::Condition(&checking_), kTestPatience));
  }
  void LetGo() {
    absl::MutexLock lock(&mutex_);
    let_go_ = true;
  }

  int runs() const {
    absl::MutexLock lock(&mutex_);
    return runs_;
  }

 private:
  void AwaitLetGo() {
    absl::MutexLock lock(&mutex_);
    checking_ = true;
    mutex_.Await(absl::Condition(&let_go_));
  }

  static std::optional<RunResult> Obey(RunRequest request) {
    switch (request) {
      case RunRequest::kNone:
        return std::nullopt;
      case RunRequest::kPause:
        return RunResult{RunOutcome::kPaused, "", ""};
      case RunRequest::kCancel:
        return RunResult{RunOutcome::kCancelled, "", ""};
      case RunRequest::kStop:
        return RunResult{RunOutcome::kStopped, "", ""};
    }
    return std::nullopt;
  }

  mutable absl::Mutex mutex_;
  std::optional<RunInProgress> running_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::StatusOr<RunResult>> result_ ABSL_GUARDED_BY(mutex_);
  bool poked_ ABSL_GUARDED_BY(mutex_) = false;
  int runs_ ABSL_GUARDED_BY(mutex_) = 0;
  bool checking_ ABSL_GUARDED_BY(mutex_) = false;
  bool let_go_ ABSL_GUARDED_BY(mutex_) = false;
};

// Thread-safe.
class EventCollector : public JobListener {
 public:
  EventCollector(JobManager* manager, std::string name, int64_t cursor = 0)
      : manager_(manager), name_(std::move(name)), cursor_(cursor) {}

  void OnNews() override {
    absl::MutexLock lock(&mutex_);
    for (;;) {
      auto batch = manager_->EventsAfter(name_, cursor_, 3);
      HALFSTEP_CHECK(batch.ok());
      last_ = batch->last;
      if (batch->events.empty()) return;
      for (auto& event : batch->events) {
        cursor_ = event.cursor();
        events_.push_back(std::move(event));
      }
    }
  }

  // Waits until the job has been in `state`.
  void WaitFor(JobState state) {
    const auto seen = [this, state]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      for (const auto& event : events_) {
        if (event.has_state_changed() && event.state_changed().state() == state) return true;
      }
      return false;
    };
    absl::MutexLock lock(&mutex_);
    HALFSTEP_CHECK(mutex_.AwaitWithTimeout(absl::Condition(&seen), kTestPatience));
  }

  // Waits until the manager says that nothing follows.
  void WaitForEnd() {
    absl::MutexLock lock(&mutex_);
    HALFSTEP_CHECK(mutex_.AwaitWithTimeout(absl::Condition(&last_), kTestPatience));
  }

  std::vector<v1::TrainingJobEvent> events() const {
    absl::MutexLock lock(&mutex_);
    return events_;
  }

  // The states the job went through, by name.
  std::vector<std::string> States() const {
    std::vector<std::string> states;
    for (const auto& event : events()) {
      if (event.has_state_changed()) states.push_back(JobStateName(event.state_changed().state()));
    }
    return states;
  }

 private:
  JobManager* const manager_;
  const std::string name_;
  mutable absl::Mutex mutex_;
  int64_t cursor_ ABSL_GUARDED_BY(mutex_);
  bool last_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<v1::TrainingJobEvent> events_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace halfstep
