// SPDX-License-Identifier: Apache-2.0
// The job API over a real connection, with a run that does what the test says.
#include "learner_server/job_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <thread>

#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "halfstep/v1/training_job.grpc.pb.h"
#include "tests/learner_server/job/fake_runner.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using Job = v1::TrainingJob;

class JobServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    store_ = *JobStore::Open(dir_.path());
    JobManagerOptions options;
    options.store = store_.get();
    options.runner = &runner_;
    options.resolve = [](const std::string&,
                         const v1::TrainingJobSpec& spec) -> absl::StatusOr<v1::TrainingJobSpec> {
      return spec;
    };
    manager_ = std::make_unique<JobManager>(std::move(options));
    ASSERT_TRUE(manager_->Recover().ok());
    manager_->Start();
    service_ = std::make_unique<JobService>(manager_.get());
    server_ = *RpcServer::Start({}, {service_->hosted()});
    ChannelOptions channel;
    channel.target = server_->address();
    stub_ = v1::TrainingJobService::NewStub(*MakeChannel(channel));
  }

  void TearDown() override {
    service_->EndWatches();
    server_->Stop(absl::Seconds(5));
    manager_->Stop(absl::ZeroDuration()).IgnoreError();
    runner_.Poke();
    EXPECT_TRUE(manager_->Stop(kTestPatience).ok());
  }

  Job Create(const std::string& request_id = "") {
    v1::CreateTrainingJobRequest request;
    request.set_request_id(request_id);
    request.mutable_spec()->set_model("m");
    Job job;
    const auto context = MakeContext(kTestPatience);
    const grpc::Status status = stub_->CreateTrainingJob(context.get(), request, &job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }

  std::unique_ptr<grpc::ClientReader<v1::TrainingJobEvent>> Watch(grpc::ClientContext* context,
                                                                  const std::string& name,
                                                                  int64_t cursor = 0) {
    v1::WatchTrainingJobRequest request;
    request.set_name(name);
    request.set_cursor(cursor);
    return stub_->WatchTrainingJob(context, request);
  }

  static v1::TrainingJobEvent Step(int64_t step) {
    v1::TrainingJobEvent event;
    event.mutable_step_finished()->set_step(step);
    return event;
  }

  TempDir dir_;
  FakeRunner runner_;
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<JobManager> manager_;
  std::unique_ptr<JobService> service_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<v1::TrainingJobService::Stub> stub_;
};

TEST_F(JobServiceTest, SlowChecksOfNewJobsHoldNothingUp) {
  const Job running = Create();
  std::vector<std::thread> creators;
  for (int i = 0; i < 3; ++i) {
    creators.emplace_back([this] {
      v1::CreateTrainingJobRequest request;
      request.mutable_spec()->set_model("slow");
      Job job;
      EXPECT_TRUE(stub_->CreateTrainingJob(MakeContext(kTestPatience).get(), request, &job).ok());
    });
  }
  runner_.WaitForCheck();
  v1::PauseTrainingJobRequest pause;
  pause.set_name(running.name());
  Job job;
  EXPECT_TRUE(stub_->PauseTrainingJob(MakeContext(kTestPatience).get(), pause, &job).ok());
  v1::ListTrainingJobsResponse list;
  EXPECT_TRUE(stub_->ListTrainingJobs(MakeContext(kTestPatience).get(), {}, &list).ok());
  EXPECT_EQ(list.training_jobs_size(), 1);
  runner_.LetGo();
  for (std::thread& creator : creators) creator.join();
  EXPECT_TRUE(stub_->ListTrainingJobs(MakeContext(kTestPatience).get(), {}, &list).ok());
  EXPECT_EQ(list.training_jobs_size(), 4);
}

TEST_F(JobServiceTest, CreateGetListAndRequests) {
  const Job created = Create("id-1");
  EXPECT_EQ(Create("id-1").name(), created.name());
  runner_.WaitForRun(1);
  v1::GetTrainingJobRequest get;
  get.set_name(created.name());
  Job job;
  EXPECT_TRUE(stub_->GetTrainingJob(MakeContext(kTestPatience).get(), get, &job).ok());
  EXPECT_EQ(job.state(), Job::STATE_STARTING);
  v1::ListTrainingJobsResponse list;
  EXPECT_TRUE(stub_->ListTrainingJobs(MakeContext(kTestPatience).get(), {}, &list).ok());
  EXPECT_EQ(list.training_jobs_size(), 1);
  v1::PauseTrainingJobRequest pause;
  pause.set_name(created.name());
  EXPECT_TRUE(stub_->PauseTrainingJob(MakeContext(kTestPatience).get(), pause, &job).ok());
  EXPECT_EQ(job.state(), Job::STATE_PAUSING);
  v1::CancelTrainingJobRequest cancel;
  cancel.set_name(created.name());
  EXPECT_TRUE(stub_->CancelTrainingJob(MakeContext(kTestPatience).get(), cancel, &job).ok());
  EXPECT_EQ(job.state(), Job::STATE_CANCELLING);
  v1::ResumeTrainingJobRequest resume;
  resume.set_name(created.name());
  EXPECT_EQ(ReasonOf(FromGrpcStatus(
                stub_->ResumeTrainingJob(MakeContext(kTestPatience).get(), resume, &job))),
            "WRONG_JOB_STATE");
}

TEST_F(JobServiceTest, ErrorsCarryReasonAndViolations) {
  v1::CreateTrainingJobRequest request;
  request.mutable_spec()->set_model("missing");
  Job job;
  const absl::Status status =
      FromGrpcStatus(stub_->CreateTrainingJob(MakeContext(kTestPatience).get(), request, &job));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), "BAD_SPEC");
  EXPECT_EQ(GetFieldViolations(status).size(), 2u);
}

TEST_F(JobServiceTest, WatchFollowsLiveToTheEnd) {
  const std::string name = Create().name();
  const auto context = MakeContext(kTestPatience);
  const auto reader = Watch(context.get(), name);
  const auto run = runner_.WaitForRun(1);
  std::vector<std::string> states;
  std::vector<int64_t> steps;
  v1::TrainingJobEvent event;
  for (int64_t step = 1; reader->Read(&event);) {
    if (event.has_state_changed()) states.push_back(JobStateName(event.state_changed().state()));
    if (event.has_step_finished()) steps.push_back(event.step_finished().step());
    // The next is said only when everything before has been seen.
    if (states.size() < 2) continue;
    if (event.has_state_changed() && states.back() == "RUNNING") continue;
    if (step <= 3) {
      run.control->Emit(Step(step++));
    } else if (step == 4) {
      runner_.Finish(RunResult{});
      ++step;
    }
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_THAT(states, ElementsAre("QUEUED", "STARTING", "RUNNING", "SUCCEEDED"));
  EXPECT_THAT(steps, ElementsAre(1, 2, 3));
}

TEST_F(JobServiceTest, AClientThatLeavesEndsItsWatchAndMayComeBack) {
  const std::string name = Create().name();
  const auto run = runner_.WaitForRun(1);
  for (int i = 1; i <= 100; ++i) run.control->Emit(Step(i));
  int64_t cursor = 0;
  {
    const auto context = MakeContext(kTestPatience);
    const auto reader = Watch(context.get(), name);
    v1::TrainingJobEvent event;
    for (int i = 0; i < 50; ++i) ASSERT_TRUE(reader->Read(&event));
    cursor = event.cursor();
    context->TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  const auto context = MakeContext(kTestPatience);
  const auto reader = Watch(context.get(), name, cursor);
  v1::TrainingJobEvent event;
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(reader->Read(&event));
    EXPECT_EQ(event.cursor(), ++cursor);
  }
  context->TryCancel();
}

TEST_F(JobServiceTest, AStoppingLearnerTellsItsWatchersToComeBack) {
  const std::string name = Create().name();
  const auto context = MakeContext(kTestPatience);
  const auto reader = Watch(context.get(), name);
  v1::TrainingJobEvent event;
  ASSERT_TRUE(reader->Read(&event));
  service_->EndWatches();
  while (reader->Read(&event)) {
  }
  const absl::Status status = FromGrpcStatus(reader->Finish());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(status), "LEARNER_STOPPING");
}

TEST_F(JobServiceTest, WatchingAnUnknownJobIsNotFound) {
  const auto context = MakeContext(kTestPatience);
  const auto reader = Watch(context.get(), "trainingJobs/nobody");
  v1::TrainingJobEvent event;
  EXPECT_FALSE(reader->Read(&event));
  EXPECT_EQ(ReasonOf(FromGrpcStatus(reader->Finish())), "JOB_NOT_FOUND");
}

}  // namespace
}  // namespace halfstep
