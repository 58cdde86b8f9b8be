// SPDX-License-Identifier: Apache-2.0
// A whole learner in this process: what it says when it starts, twice, wrongly, and when it stops.
#include "learner_server/learner_server.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "common/base/error_reason.h"
#include "common/rpc/channel.h"
#include "common/rpc/port_file.h"
#include "common/rpc/status.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "halfstep/v1/training_job.grpc.pb.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;

class LearnerServerTest : public ::testing::Test {
 protected:
  LearnerServerOptions Options() {
    LearnerServerOptions options;
    options.root = dir_.path();
    options.threads = 1;
    options.port_file = dir_ / "ports.json";
    return options;
  }

  std::shared_ptr<grpc::Channel> Dial(const LearnerServer& learner) {
    ChannelOptions options;
    options.target = learner.grpc_address();
    return *MakeChannel(options);
  }

  TempDir dir_;
};

TEST_F(LearnerServerTest, IsReadyWhenItHasStartedAndSaysWhere) {
  const auto learner = LearnerServer::Start(Options());
  ASSERT_TRUE(learner.ok()) << learner.status();
  const auto ports = ReadPortFile(dir_ / "ports.json");
  ASSERT_TRUE(ports.ok()) << ports.status();
  EXPECT_EQ(ports->grpc, (*learner)->grpc_address());
  EXPECT_EQ(ports->http, (*learner)->http_address());
  EXPECT_EQ(ports->pid, getpid());
  grpc::health::v1::HealthCheckResponse health;
  const auto context = MakeContext(absl::Seconds(20));
  ASSERT_TRUE(
      grpc::health::v1::Health::NewStub(Dial(**learner))->Check(context.get(), {}, &health).ok());
  EXPECT_EQ(health.status(), grpc::health::v1::HealthCheckResponse::SERVING);
}

TEST_F(LearnerServerTest, ASecondOneOnTheSameStateIsRefused) {
  const auto first = LearnerServer::Start(Options());
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = LearnerServer::Start(Options());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(second.status()), "STATE_DIR_IN_USE");
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(dir_.path()));
}

TEST_F(LearnerServerTest, APortInUseIsNamedForGrpcAndHttp) {
  const auto first = LearnerServer::Start(Options());
  ASSERT_TRUE(first.ok()) << first.status();
  LearnerServerOptions options = Options();
  options.state = dir_ / "other";
  options.server.listen = (*first)->grpc_address();
  absl::Status status = LearnerServer::Start(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(status), "ADDRESS_IN_USE");
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("cannot listen on " + (*first)->grpc_address()));
  options.server.listen = "127.0.0.1:0";
  options.http = (*first)->http_address();
  status = LearnerServer::Start(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(status), "ADDRESS_IN_USE");
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("cannot serve HTTP on " + (*first)->http_address()));
}

TEST_F(LearnerServerTest, MetricsInPlainTextForOtherMachinesAreRefused) {
  LearnerServerOptions options = Options();
  options.http = "0.0.0.0:0";
  const absl::Status status = LearnerServer::Start(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(status), "INSECURE_ADDRESS");
  options.server.insecure = true;
  const auto learner = LearnerServer::Start(options);
  EXPECT_TRUE(learner.ok()) << learner.status();
}

TEST_F(LearnerServerTest, ARootThatIsNoFolderIsRefused) {
  LearnerServerOptions options = Options();
  options.root = dir_ / "nothing";
  EXPECT_EQ(ReasonOf(LearnerServer::Start(options).status()), "BAD_ROOT");
}

TEST_F(LearnerServerTest, RefusesAJobWithEveryMistakeAndWithPathsOutsideItsRoot) {
  const auto learner = LearnerServer::Start(Options());
  ASSERT_TRUE(learner.ok()) << learner.status();
  const auto stub = v1::TrainingJobService::NewStub(Dial(**learner));
  v1::CreateTrainingJobRequest request;
  v1::TrainingJob job;
  const auto create = [&] {
    return FromGrpcStatus(
        stub->CreateTrainingJob(MakeContext(absl::Seconds(20)).get(), request, &job));
  };
  absl::Status status = create();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), "INVALID_SPEC");
  EXPECT_GE(GetFieldViolations(status).size(), 5u);

  v1::TrainingJobSpec& spec = *request.mutable_spec();
  spec.set_model("../elsewhere");
  spec.set_steps(1);
  spec.mutable_data()->set_train("train.jsonl");
  spec.mutable_sampling()->set_max_new_tokens(8);
  spec.mutable_batch()->set_prompts(2);
  spec.mutable_batch()->set_samples(2);
  spec.mutable_optimizer()->set_learning_rate(1e-4);
  status = create();
  EXPECT_EQ(ReasonOf(status), "PATH_OUTSIDE_ROOT") << status;
}

TEST_F(LearnerServerTest, StopsInOrderAndStartsAgainOnTheSameState) {
  for (int i = 0; i < 2; ++i) {
    const auto learner = LearnerServer::Start(Options());
    ASSERT_TRUE(learner.ok()) << learner.status();
    EXPECT_TRUE((*learner)->Stop(absl::Seconds(20)).ok());
  }
}

}  // namespace
}  // namespace halfstep
