// SPDX-License-Identifier: Apache-2.0
#include "learner_server/job/job_manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/metrics/learner_metrics.h"
#include "learner_server/job/sqlite.h"
#include "tests/learner_server/job/fake_runner.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Job = v1::TrainingJob;

class JobManagerTest : public ::testing::Test {
 protected:
  void SetUp() override { StartLearner(); }
  void TearDown() override { StopLearner(); }

  void StartLearner() {
    OpenLearner();
    manager_->Start();
  }

  // Ready for calls; nothing runs yet.
  void OpenLearner() {
    auto store = JobStore::Open(dir_.path());
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    runner_ = std::make_unique<FakeRunner>();
    registry_ = std::make_unique<Registry>();
    metrics_ = std::make_unique<LearnerMetrics>(*registry_);
    JobManagerOptions options;
    options.store = store_.get();
    options.runner = runner_.get();
    options.clock = &clock_;
    options.metrics = metrics_.get();
    options.max_unfinished_jobs = 3;
    options.max_listeners = 4;
    options.resolve = [](const std::string& job_id,
                         const v1::TrainingJobSpec& spec) -> absl::StatusOr<v1::TrainingJobSpec> {
      v1::TrainingJobSpec resolved = spec;
      if (!resolved.has_seed()) resolved.set_seed(1);
      if (resolved.output_dir().empty()) resolved.set_output_dir("runs/" + job_id);
      return resolved;
    };
    manager_ = std::make_unique<JobManager>(std::move(options));
    ASSERT_TRUE(manager_->Recover().ok());
  }

  // As SIGTERM does.
  void StopLearner() {
    manager_->Stop(absl::ZeroDuration()).IgnoreError();
    runner_->Poke();
    EXPECT_TRUE(manager_->Stop(kTestPatience).ok());
    manager_.reset();
    metrics_.reset();
    store_.reset();
  }

  std::string Create(const std::string& model = "m") {
    v1::CreateTrainingJobRequest request;
    request.mutable_spec()->set_model(model);
    const auto job = manager_->Create(request);
    EXPECT_TRUE(job.ok()) << job.status();
    return job->name();
  }

  std::shared_ptr<EventCollector> Watch(const std::string& name, int64_t cursor = 0) {
    auto collector = std::make_shared<EventCollector>(manager_.get(), name, cursor);
    EXPECT_TRUE(manager_->Listen(name, collector).ok());
    collector->OnNews();
    return collector;
  }

  JobState StateOf(const std::string& name) { return manager_->Get(name)->state(); }

  static v1::TrainingJobEvent Step(int64_t step) {
    v1::TrainingJobEvent event;
    event.mutable_step_finished()->set_step(step);
    return event;
  }

  TempDir dir_;
  FakeClock clock_;
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<FakeRunner> runner_;
  std::unique_ptr<Registry> registry_;
  std::unique_ptr<LearnerMetrics> metrics_;
  std::unique_ptr<JobManager> manager_;
};

TEST_F(JobManagerTest, RunsAJobThroughItsStates) {
  const std::string name = Create();
  const auto watch = Watch(name);
  const auto run = runner_->WaitForRun(1);
  EXPECT_EQ("trainingJobs/" + run.job_id, name);
  EXPECT_EQ(run.epoch, 1u);
  run.control->Emit(Step(1));
  run.control->SetProgress(1, 5);
  EXPECT_EQ(manager_->Get(name)->step(), 1);
  EXPECT_EQ(manager_->Get(name)->policy_version(), 5);
  runner_->Finish(RunResult{});
  watch->WaitForEnd();
  EXPECT_THAT(watch->States(), ElementsAre("QUEUED", "STARTING", "RUNNING", "SUCCEEDED"));
  const auto job = manager_->Get(name);
  EXPECT_EQ(job->step(), 1);
  EXPECT_EQ(job->spec().seed(), 1u);
  EXPECT_EQ(job->spec().output_dir(), "runs/" + run.job_id);
  EXPECT_EQ(job->summary().output_dir(), "runs/" + run.job_id);
}

TEST_F(JobManagerTest, OneRunsTheOthersQueueFirstInFirstOut) {
  const std::string a = Create();
  const std::string b = Create();
  const std::string c = Create();
  EXPECT_EQ("trainingJobs/" + runner_->WaitForRun(1).job_id, a);
  EXPECT_EQ(StateOf(b), Job::STATE_QUEUED);
  runner_->Finish(RunResult{});
  EXPECT_EQ("trainingJobs/" + runner_->WaitForRun(2).job_id, b);
  runner_->Finish(RunResult{});
  const auto run = runner_->WaitForRun(3);
  EXPECT_EQ("trainingJobs/" + run.job_id, c);
  EXPECT_EQ(run.epoch, 3u);
}

TEST_F(JobManagerTest, AFailureKeepsReasonAndMessage) {
  const std::string name = Create();
  const auto watch = Watch(name);
  runner_->Finish(Error(absl::StatusCode::kInternal, "DIVERGED", "the loss is not finite"));
  watch->WaitForEnd();
  const auto job = manager_->Get(name);
  EXPECT_EQ(job->state(), Job::STATE_FAILED);
  EXPECT_EQ(job->reason(), "DIVERGED");
  EXPECT_EQ(job->message(), "the loss is not finite");
}

TEST_F(JobManagerTest, AFailureWithoutReasonGetsItsCode) {
  const std::string name = Create();
  const auto watch = Watch(name);
  runner_->Finish(absl::DataLossError("bad file"));
  watch->WaitForEnd();
  EXPECT_EQ(manager_->Get(name)->reason(), "DATA_LOSS");
}

TEST_F(JobManagerTest, PauseFreesTheLearnerAndResumeQueuesAgain) {
  const std::string a = Create();
  const std::string b = Create();
  const auto watch = Watch(a);
  runner_->WaitForRun(1).control->Emit(Step(1));
  EXPECT_EQ(manager_->Pause(a)->state(), Job::STATE_PAUSING);
  EXPECT_EQ(manager_->Pause(a)->state(), Job::STATE_PAUSING);
  EXPECT_EQ(manager_->Resume(a).status().code(), absl::StatusCode::kFailedPrecondition);
  runner_->Poke();
  watch->WaitFor(Job::STATE_PAUSED);
  EXPECT_EQ("trainingJobs/" + runner_->WaitForRun(2).job_id, b);
  EXPECT_EQ(manager_->Resume(a)->state(), Job::STATE_QUEUED);
  runner_->Finish(RunResult{});
  EXPECT_EQ("trainingJobs/" + runner_->WaitForRun(3).job_id, a);
}

TEST_F(JobManagerTest, ARunMayPauseByItselfWithAReason) {
  const std::string name = Create();
  const auto watch = Watch(name);
  runner_->Finish(RunResult{RunOutcome::kPaused, "NO_ROLLOUT", "no rollout for 10 minutes"});
  watch->WaitFor(Job::STATE_PAUSED);
  EXPECT_EQ(watch->events().back().state_changed().reason(), "NO_ROLLOUT");
  EXPECT_EQ(watch->events().back().state_changed().message(), "no rollout for 10 minutes");
}

TEST_F(JobManagerTest, QueuedJobsPauseResumeAndCancelWithoutRunning) {
  Create();
  const std::string b = Create();
  const std::string c = Create();
  runner_->WaitForRun(1);
  EXPECT_EQ(manager_->Pause(b)->state(), Job::STATE_PAUSED);
  EXPECT_EQ(manager_->Cancel(c)->state(), Job::STATE_CANCELLED);
  EXPECT_EQ(manager_->Cancel(c)->state(), Job::STATE_CANCELLED);
  EXPECT_EQ(manager_->Cancel(b)->state(), Job::STATE_CANCELLED);
  const std::string d = Create();
  runner_->Finish(RunResult{});
  EXPECT_EQ("trainingJobs/" + runner_->WaitForRun(2).job_id, d);
}

TEST_F(JobManagerTest, CancelStopsTheRun) {
  const std::string name = Create();
  const auto watch = Watch(name);
  runner_->WaitForRun(1);
  EXPECT_EQ(manager_->Pause(name)->state(), Job::STATE_PAUSING);
  EXPECT_EQ(manager_->Cancel(name)->state(), Job::STATE_CANCELLING);
  runner_->Poke();
  watch->WaitForEnd();
  EXPECT_THAT(watch->States(),
              ElementsAre("QUEUED", "STARTING", "PAUSING", "CANCELLING", "CANCELLED"));
}

TEST_F(JobManagerTest, FinishedJobsRefuseRequestsByName) {
  const std::string name = Create();
  const auto watch = Watch(name);
  runner_->Finish(RunResult{});
  watch->WaitForEnd();
  const absl::Status status = manager_->Pause(name).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(status), "WRONG_JOB_STATE");
  EXPECT_EQ(status.message(), absl::StrCat("job ", name, " is SUCCEEDED and cannot be paused"));
}

TEST_F(JobManagerTest, TheSameRequestIdCreatesOnce) {
  v1::CreateTrainingJobRequest request;
  request.set_request_id("2f9c3c2e-0000-4000-8000-000000000000");
  request.mutable_spec()->set_model("m");
  const auto first = manager_->Create(request);
  const auto second = manager_->Create(request);
  EXPECT_EQ(first->name(), second->name());
  EXPECT_EQ(manager_->List({})->training_jobs_size(), 1);
}

TEST_F(JobManagerTest, ValidateOnlyStoresNothing) {
  v1::CreateTrainingJobRequest request;
  request.set_validate_only(true);
  const auto job = manager_->Create(request);
  ASSERT_TRUE(job.ok());
  EXPECT_EQ(job->name(), "");
  EXPECT_EQ(job->spec().seed(), 1u);
  EXPECT_EQ(manager_->List({})->training_jobs_size(), 0);
}

TEST_F(JobManagerTest, ABadSpecificationIsRefusedWithEveryViolation) {
  v1::CreateTrainingJobRequest request;
  request.mutable_spec()->set_model("missing");
  const auto job = manager_->Create(request);
  EXPECT_EQ(job.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GetFieldViolations(job.status()).size(), 2u);
  EXPECT_EQ(manager_->List({})->training_jobs_size(), 0);
}

TEST_F(JobManagerTest, TheQueueIsBounded) {
  Create();
  runner_->WaitForRun(1);
  for (int i = 0; i < 3; ++i) Create();
  const auto refused = manager_->Create({});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(refused.status()), "TOO_MANY_JOBS");
}

TEST_F(JobManagerTest, ListsInPages) {
  std::vector<std::string> created;
  for (int i = 0; i < 3; ++i) created.push_back(Create());
  v1::ListTrainingJobsRequest request;
  request.set_page_size(2);
  const auto first = manager_->List(request);
  ASSERT_EQ(first->training_jobs_size(), 2);
  EXPECT_EQ(first->training_jobs(0).name(), created[2]);
  request.set_page_token(first->next_page_token());
  const auto second = manager_->List(request);
  ASSERT_EQ(second->training_jobs_size(), 1);
  EXPECT_EQ(second->training_jobs(0).name(), created[0]);
  EXPECT_EQ(second->next_page_token(), "");
  request.set_page_token("mine");
  EXPECT_EQ(ReasonOf(manager_->List(request).status()), "BAD_PAGE_TOKEN");
  request.set_page_size(-1);
  EXPECT_EQ(ReasonOf(manager_->List(request).status()), "BAD_PAGE_SIZE");
}

TEST_F(JobManagerTest, ARestartedLearnerContinuesTheRunningJobBeforeTheQueue) {
  const std::string a = Create();
  const std::string b = Create();
  auto run = runner_->WaitForRun(1);
  run.control->Emit(Step(1));
  StopLearner();
  StartLearner();
  run = runner_->WaitForRun(1);
  EXPECT_EQ("trainingJobs/" + run.job_id, a);
  EXPECT_EQ(run.epoch, 2u);
  EXPECT_EQ(StateOf(b), Job::STATE_QUEUED);
  run.control->Emit(Step(2));
  const auto watch = Watch(a);
  EXPECT_THAT(watch->States(), ElementsAre("QUEUED", "STARTING", "RUNNING", "STARTING", "RUNNING"));
  EXPECT_EQ(watch->events()[4].state_changed().reason(), "LEARNER_RESTARTED");
  runner_->Finish(RunResult{});
  EXPECT_EQ("trainingJobs/" + runner_->WaitForRun(2).job_id, b);
}

TEST_F(JobManagerTest, RequestsNotYetObeyedAtAStopAreObeyedAtTheNextStart) {
  const std::string a = Create();
  runner_->WaitForRun(1);
  ASSERT_TRUE(manager_->Stop(absl::ZeroDuration()).code() == absl::StatusCode::kDeadlineExceeded);
  ASSERT_TRUE(manager_->Pause(a).ok());
  StopLearner();
  StartLearner();
  EXPECT_EQ(StateOf(a), Job::STATE_PAUSED);
  EXPECT_EQ(runner_->runs(), 0);
}

TEST_F(JobManagerTest, AJobThatWaitsToGoOnAfterARestartObeysAtOnce) {
  const std::string a = Create();
  runner_->WaitForRun(1);
  StopLearner();
  OpenLearner();
  const std::string b = Create();
  EXPECT_EQ(StateOf(a), Job::STATE_STARTING);
  EXPECT_EQ(manager_->Resume(a)->state(), Job::STATE_STARTING);
  EXPECT_EQ(manager_->Pause(a)->state(), Job::STATE_PAUSED);
  EXPECT_EQ(manager_->Resume(a)->state(), Job::STATE_QUEUED);
  manager_->Start();
  EXPECT_EQ("trainingJobs/" + runner_->WaitForRun(1).job_id, b);
  StopLearner();
  OpenLearner();
  EXPECT_EQ(manager_->Cancel(b)->state(), Job::STATE_CANCELLED);
  manager_->Start();
  EXPECT_EQ("trainingJobs/" + runner_->WaitForRun(1).job_id, a);
}

TEST_F(JobManagerTest, AJobThatNoLongerWaitsIsPassedOver) {
  const std::string a = Create();
  const std::string b = Create();
  runner_->WaitForRun(1);
  Job job = *store_->Get(b);
  job.set_state(Job::STATE_SUCCEEDED);
  ASSERT_TRUE(store_->Update(job, Step(1)).ok());
  const std::string c = Create();
  runner_->Finish(RunResult{});
  EXPECT_EQ("trainingJobs/" + runner_->WaitForRun(2).job_id, c);
  EXPECT_EQ(StateOf(b), Job::STATE_SUCCEEDED);
}

TEST_F(JobManagerTest, AWatcherThatAttachesAgainLosesAndRepeatsNothing) {
  const std::string name = Create();
  const auto run = runner_->WaitForRun(1);
  for (int i = 1; i <= 5; ++i) run.control->Emit(Step(i));
  auto first = Watch(name);
  const size_t seen = first->events().size();
  const int64_t cursor = first->events()[seen - 3].cursor();
  first.reset();
  for (int i = 6; i <= 10; ++i) run.control->Emit(Step(i));
  const auto second = Watch(name, cursor);
  for (int i = 11; i <= 12; ++i) run.control->Emit(Step(i));
  runner_->Finish(RunResult{});
  second->WaitForEnd();
  std::vector<int64_t> steps;
  for (const auto& event : second->events()) {
    if (event.has_step_finished()) steps.push_back(event.step_finished().step());
  }
  EXPECT_THAT(steps, ElementsAre(4, 5, 6, 7, 8, 9, 10, 11, 12));
}

TEST_F(JobManagerTest, WatchersAreBoundedAndGoneOnesDoNotCount) {
  const std::string name = Create();
  runner_->WaitForRun(1);  // from here on nobody is notified, so nobody else holds a watcher
  for (int i = 0; i < 10; ++i) Watch(name);
  std::vector<std::shared_ptr<EventCollector>> held;
  for (int i = 0; i < 4; ++i) held.push_back(Watch(name));
  const auto one_more = std::make_shared<EventCollector>(manager_.get(), name);
  EXPECT_EQ(ReasonOf(manager_->Listen(name, one_more)), "TOO_MANY_WATCHERS");
  EXPECT_EQ(ReasonOf(manager_->Listen("trainingJobs/x", one_more)), "JOB_NOT_FOUND");
}

TEST_F(JobManagerTest, BadNamesAreRefused) {
  EXPECT_EQ(ReasonOf(manager_->Get("x").status()), "BAD_JOB_NAME");
  EXPECT_EQ(ReasonOf(manager_->Get("trainingJobs/").status()), "BAD_JOB_NAME");
  EXPECT_EQ(ReasonOf(manager_->Cancel("trainingJobs/x").status()), "JOB_NOT_FOUND");
}

TEST_F(JobManagerTest, AStoreThatCannotBeWrittenIsBadHealthButNoDeath) {
  const std::string name = Create();
  const auto run = runner_->WaitForRun(1);
  auto other = SqliteDatabase::Open(dir_ / "jobs.sqlite");
  ASSERT_TRUE(other.ok()) << other.status();
  ASSERT_TRUE(other->Execute("ALTER TABLE events RENAME TO hidden").ok());
  run.control->Emit(Step(1));
  EXPECT_EQ(ReasonOf(manager_->Health()), "JOB_STORE_UNAVAILABLE");
  EXPECT_TRUE(manager_->Alive().ok());
  ASSERT_TRUE(other->Execute("ALTER TABLE hidden RENAME TO events").ok());
  run.control->Emit(Step(2));
  EXPECT_TRUE(manager_->Health().ok());
  EXPECT_TRUE(manager_->Alive().ok());
  manager_->Stop(absl::ZeroDuration()).IgnoreError();
  runner_->Poke();
  ASSERT_TRUE(manager_->Stop(kTestPatience).ok());
  EXPECT_FALSE(manager_->Alive().ok());
}

TEST_F(JobManagerTest, ExportsTheStateOfTheJob) {
  const std::string name = Create();
  const auto run = runner_->WaitForRun(1);
  run.control->SetProgress(0, 0);
  EXPECT_THAT(registry_->Scrape(), HasSubstr("halfstep_job_state{state=\"running\"} 1"));
  const auto watch = Watch(name);
  runner_->Finish(RunResult{});
  watch->WaitForEnd();
  EXPECT_THAT(registry_->Scrape(), HasSubstr("halfstep_job_state{state=\"running\"} 0"));
  EXPECT_THAT(registry_->Scrape(), HasSubstr("halfstep_job_state{state=\"succeeded\"} 1"));
  StopLearner();
  StartLearner();
  EXPECT_THAT(registry_->Scrape(), HasSubstr("halfstep_job_state{state=\"succeeded\"} 1"));
  const auto second = Watch(Create());
  runner_->Finish(absl::DataLossError("bad file"));
  second->WaitForEnd();
  EXPECT_THAT(registry_->Scrape(), HasSubstr("halfstep_job_state{state=\"failed\"} 1"));
  EXPECT_THAT(registry_->Scrape(), HasSubstr("halfstep_job_state{state=\"succeeded\"} 0"));
}

}  // namespace
}  // namespace halfstep
