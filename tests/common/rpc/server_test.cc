// SPDX-License-Identifier: Apache-2.0
// Real servers on port 0 of loopback, called over real channels.
#include "common/rpc/server.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/metrics/registry.h"
#include "common/rpc/auth.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "halfstep/v1/generation.grpc.pb.h"
#include "halfstep/v1/rollout_coordination.grpc.pb.h"
#include "halfstep/v1/training_job.grpc.pb.h"
#include "halfstep/v1/weights.grpc.pb.h"
#include "tests/common/rpc/generic_call.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

// Counts the calls that reach a handler; the handlers of the other services, which are the
// generated ones, answer UNIMPLEMENTED.
class CountingJobService : public v1::TrainingJobService::CallbackService {
 public:
  grpc::ServerUnaryReactor* GetTrainingJob(grpc::CallbackServerContext* context,
                                           const v1::GetTrainingJobRequest*,
                                           v1::TrainingJob* response) override {
    ++calls;
    response->set_name("trainingJobs/1");
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  grpc::ServerUnaryReactor* CreateTrainingJob(grpc::CallbackServerContext* context,
                                              const v1::CreateTrainingJobRequest*,
                                              v1::TrainingJob*) override {
    ++calls;
    std::vector<FieldViolation> violations;
    for (int i = 0; i < 100; ++i) {
      violations.push_back({absl::StrCat("field", i), std::string(100, 'x')});
    }
    auto* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpcStatus(WithFieldViolations(
        Error(absl::StatusCode::kInvalidArgument, "BAD_SPEC", "100 mistakes"), violations)));
    return reactor;
  }
  std::atomic<int> calls{0};
};

class RpcServerTest : public ::testing::Test {
 protected:
  std::vector<HostedService> Services() {
    v1::Hello::descriptor();  // links the descriptors of a service whose messages no test sends
    return {{&jobs_, v1::TrainingJobService::service_full_name()},
            {&rollouts_, v1::RolloutCoordinationService::service_full_name()},
            {&weights_, v1::WeightService::service_full_name()},
            {&generation_, v1::GenerationService::service_full_name()}};
  }

  std::unique_ptr<RpcServer> Start(const ServerOptions& options) {
    auto server = RpcServer::Start(options, Services());
    EXPECT_TRUE(server.ok()) << server.status();
    return std::move(server).value();
  }

  std::shared_ptr<grpc::Channel> Dial(const RpcServer& server, const std::string& token_file = "") {
    ChannelOptions options;
    options.target = server.address();
    options.token_file = token_file;
    auto channel = MakeChannel(options);
    EXPECT_TRUE(channel.ok()) << channel.status();
    return *channel;
  }

  std::string WriteSecret(const std::string& name, const std::string& contents) {
    const std::string path = dir_.path() + "/" + name;
    EXPECT_TRUE(WriteFileAtomic(path, contents).ok());
    chmod(path.c_str(), 0600);
    return path;
  }

  TempDir dir_;
  CountingJobService jobs_;
  v1::RolloutCoordinationService::CallbackService rollouts_;
  v1::WeightService::CallbackService weights_;
  v1::GenerationService::CallbackService generation_;
};

TEST_F(RpcServerTest, EveryMethodAgainstEveryRole) {
  ServerOptions options;
  options.token_file = WriteSecret(
      "tokens",
      "# one per role\nadmin a-token\nsubmitter s-token\nviewer v-token\n\nrollout r-token\n");
  const auto server = Start(options);
  const auto channel = Dial(*server);
  const std::vector<std::string> methods = ListMethods(channel);
  const std::map<Role, std::string> tokens = {{Role::kAdmin, "a-token"},
                                              {Role::kSubmitter, "s-token"},
                                              {Role::kViewer, "v-token"},
                                              {Role::kRollout, "r-token"}};
  int ours = 0;
  for (const std::string& method : methods) {
    if (absl::StartsWith(method, "/grpc.reflection.")) continue;
    if (method == "/grpc.health.v1.Health/Watch") continue;  // never ends
    if (method == "/grpc.health.v1.Health/Check") {
      const auto code = CallWithEmptyMessage(channel, method, "").error_code();
      EXPECT_NE(code, grpc::StatusCode::UNAUTHENTICATED) << method;
      EXPECT_NE(code, grpc::StatusCode::PERMISSION_DENIED) << method;
      continue;
    }
    ++ours;
    ASSERT_EQ(HalfstepMethodRoles().count(method), 1u) << method << " is in no row of the table";
    for (const std::string evidence : {"", "Bearer wrong", "Bearer a-toke", "Basic a-token"}) {
      const absl::Status status = FromGrpcStatus(CallWithEmptyMessage(channel, method, evidence));
      EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated)
          << method << " with " << evidence;
      EXPECT_EQ(ReasonOf(status), evidence.empty() ? "CREDENTIALS_MISSING" : "BAD_CREDENTIALS");
    }
    for (const auto& [role, token] : tokens) {
      const int calls_before = jobs_.calls;
      const absl::Status status =
          FromGrpcStatus(CallWithEmptyMessage(channel, method, "Bearer " + token));
      if (HalfstepMethodRoles().at(method).count(role) > 0) {
        EXPECT_NE(status.code(), absl::StatusCode::kPermissionDenied) << method << RoleName(role);
        EXPECT_NE(status.code(), absl::StatusCode::kUnauthenticated) << method << RoleName(role);
      } else {
        EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << method << RoleName(role);
        EXPECT_EQ(ReasonOf(status), "ROLE_NOT_ALLOWED");
        EXPECT_EQ(jobs_.calls, calls_before) << "a denied call reached its handler";
      }
    }
  }
  EXPECT_EQ(ours, 12);
  EXPECT_THAT(methods, Contains("/grpc.health.v1.Health/Check"));
}

TEST_F(RpcServerTest, RolesOfTheTable) {
  const MethodRoles& roles = HalfstepMethodRoles();
  EXPECT_EQ(roles.at("/halfstep.v1.TrainingJobService/GetTrainingJob"),
            (std::set<Role>{Role::kAdmin, Role::kSubmitter, Role::kViewer}));
  EXPECT_EQ(roles.at("/halfstep.v1.TrainingJobService/CancelTrainingJob"),
            (std::set<Role>{Role::kAdmin, Role::kSubmitter}));
  EXPECT_EQ(roles.at("/halfstep.v1.WeightService/FetchWeights"),
            (std::set<Role>{Role::kAdmin, Role::kRollout}));
  EXPECT_EQ(roles.at("/halfstep.v1.RolloutCoordinationService/Attach"),
            (std::set<Role>{Role::kAdmin, Role::kRollout}));
}

TEST_F(RpcServerTest, MethodOutsideTheTableIsDeniedEvenToAdmin) {
  Authorizer::Options open;
  open.open = true;
  const Authorizer authorizer(open, HalfstepMethodRoles());
  EXPECT_EQ(authorizer.Check("/halfstep.v1.TrainingJobService/Other", {}).code(),
            absl::StatusCode::kPermissionDenied);
}

TEST_F(RpcServerTest, LoopbackWithoutCredentialsIsOpen) {
  const auto server = Start({});
  const auto channel = Dial(*server);
  v1::TrainingJob job;
  const auto context = MakeContext(absl::Seconds(20));
  const auto stub = v1::TrainingJobService::NewStub(channel);
  ASSERT_TRUE(stub->GetTrainingJob(context.get(), {}, &job).ok());
  EXPECT_EQ(job.name(), "trainingJobs/1");
}

TEST_F(RpcServerTest, ChannelSendsTheTokenOfItsFile) {
  ServerOptions options;
  options.token_file = WriteSecret("tokens", "viewer s3cret\n");
  const auto server = Start(options);
  const auto stub = v1::TrainingJobService::NewStub(Dial(*server, WriteSecret("mine", "s3cret\n")));
  v1::TrainingJob job;
  const auto context = MakeContext(absl::Seconds(20));
  EXPECT_TRUE(stub->GetTrainingJob(context.get(), {}, &job).ok());
}

TEST_F(RpcServerTest, ErrorDetailsLargerThanGrpcsDefaultArrive) {
  const auto server = Start({});
  const auto stub = v1::TrainingJobService::NewStub(Dial(*server));
  v1::TrainingJob job;
  const auto context = MakeContext(absl::Seconds(20));
  const absl::Status status = FromGrpcStatus(stub->CreateTrainingJob(context.get(), {}, &job));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), "BAD_SPEC");
  ASSERT_EQ(GetFieldViolations(status).size(), 100u);
  EXPECT_EQ(GetFieldViolations(status)[99].field, "field99");
}

TEST_F(RpcServerTest, CallsAreCountedByMethodFromZero) {
  Registry registry;
  ServerOptions options;
  options.metrics = &registry;
  const auto server = Start(options);
  const std::string series =
      "halfstep_grpc_server_call_started_total{method=\"halfstep.v1.TrainingJobService/"
      "GetTrainingJob\"}";
  EXPECT_THAT(registry.Scrape(), HasSubstr(series + " 0"));
  CallWithEmptyMessage(Dial(*server), "/halfstep.v1.TrainingJobService/GetTrainingJob", "");
  EXPECT_THAT(registry.Scrape(), HasSubstr(series + " 1"));
  server->Stop(absl::Seconds(10));
  EXPECT_THAT(registry.Scrape(),
              HasSubstr("halfstep_grpc_server_call_duration_seconds_count{method="
                        "\"halfstep.v1.TrainingJobService/GetTrainingJob\"} 1"));
}

TEST_F(RpcServerTest, HealthFollowsSetServing) {
  const auto server = Start({});
  const auto health = grpc::health::v1::Health::NewStub(Dial(*server));
  const auto check = [&health](const std::string& service) {
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    grpc::health::v1::HealthCheckResponse response;
    const auto context = MakeContext(absl::Seconds(20));
    const grpc::Status status = health->Check(context.get(), request, &response);
    return status.ok() ? response.status() : grpc::health::v1::HealthCheckResponse::UNKNOWN;
  };
  EXPECT_EQ(check(""), grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  server->SetServing(true);
  EXPECT_EQ(check(""), grpc::health::v1::HealthCheckResponse::SERVING);
  EXPECT_EQ(check("readiness"), grpc::health::v1::HealthCheckResponse::SERVING);
  EXPECT_EQ(check("nobody"), grpc::health::v1::HealthCheckResponse::UNKNOWN);
}

TEST_F(RpcServerTest, OpenCallsOfAConnectionAreBounded) {
  ServerOptions options;
  options.max_streams_per_connection = 2;
  const auto server = Start(options);
  const auto channel = Dial(*server);
  const auto health = grpc::health::v1::Health::NewStub(channel);
  const auto watch = [&health](grpc::ClientContext* context) {
    auto reader = health->Watch(context, {});
    grpc::health::v1::HealthCheckResponse response;
    EXPECT_TRUE(reader->Read(&response));
    return reader;
  };
  const auto first = MakeContext(absl::Seconds(60));
  const auto second = MakeContext(absl::Seconds(60));
  const auto first_reader = watch(first.get());
  const auto second_reader = watch(second.get());
  const auto stub = v1::TrainingJobService::NewStub(channel);
  v1::TrainingJob job;
  const auto waiting = MakeContext(absl::Milliseconds(200));
  EXPECT_EQ(stub->GetTrainingJob(waiting.get(), {}, &job).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(jobs_.calls, 0);
  second->TryCancel();
  second_reader->Finish();
  const auto allowed = MakeContext(absl::Seconds(20));
  EXPECT_TRUE(stub->GetTrainingJob(allowed.get(), {}, &job).ok());
  first->TryCancel();
  first_reader->Finish();
}

TEST_F(RpcServerTest, PortInUseNamesTheAddressAndTheWayOut) {
  const auto first = Start({});
  ServerOptions options;
  options.listen = first->address();
  const auto second = RpcServer::Start(options, Services());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(second.status()), "ADDRESS_IN_USE");
  EXPECT_THAT(
      std::string(second.status().message()),
      HasSubstr(absl::StrCat("cannot listen on ", first->address(),
                             ": Address already in use; stop what listens there, or use port 0")));
}

TEST_F(RpcServerTest, PublicAddressWithoutTlsIsRefusedUnlessInsecure) {
  ServerOptions options;
  options.listen = "0.0.0.0:0";
  const auto refused = RpcServer::Start(options, Services());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(refused.status()), "INSECURE_ADDRESS");
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("--insecure"));
  options.insecure = true;
  const auto accepted = RpcServer::Start(options, Services());
  ASSERT_TRUE(accepted.ok()) << accepted.status();
  EXPECT_GT((*accepted)->port(), 0);
}

TEST(CheckPlainAddressTest, PublicAddressesAreRefusedUnlessInsecure) {
  for (const char* address : {"0.0.0.0:9464", "[::]:9464", "127.evil.example:9464"}) {
    const absl::Status refused = CheckPlainAddress(address, /*insecure=*/false);
    EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << address;
    EXPECT_EQ(ReasonOf(refused), "INSECURE_ADDRESS") << address;
    EXPECT_THAT(std::string(refused.message()), HasSubstr("--insecure"));
    EXPECT_TRUE(CheckPlainAddress(address, /*insecure=*/true).ok()) << address;
  }
  EXPECT_TRUE(CheckPlainAddress("127.0.0.1:9464", /*insecure=*/false).ok());
  EXPECT_EQ(ReasonOf(CheckPlainAddress("9464", /*insecure=*/true)), "BAD_ADDRESS");
}

TEST_F(RpcServerTest, ListensOnUnixSocket) {
  ServerOptions options;
  options.listen = absl::StrCat("unix:", dir_.path(), "/socket");
  const auto server = Start(options);
  EXPECT_EQ(server->port(), 0);
  const auto stub = v1::TrainingJobService::NewStub(Dial(*server));
  v1::TrainingJob job;
  const auto context = MakeContext(absl::Seconds(20));
  EXPECT_TRUE(stub->GetTrainingJob(context.get(), {}, &job).ok());
}

TEST_F(RpcServerTest, BadOptionsAreRefusedWithReasons) {
  const auto reason = [this](const ServerOptions& options) {
    return ReasonOf(RpcServer::Start(options, Services()).status());
  };
  ServerOptions address;
  address.listen = "nonsense";
  EXPECT_EQ(reason(address), "BAD_ADDRESS");
  ServerOptions half_tls;
  half_tls.tls_cert_file = "cert.pem";
  EXPECT_EQ(reason(half_tls), "BAD_TLS_OPTIONS");
  ServerOptions ca_alone;
  ca_alone.tls_client_ca_file = "ca.pem";
  EXPECT_EQ(reason(ca_alone), "BAD_TLS_OPTIONS");
  ServerOptions tokens;
  tokens.token_file = WriteSecret("bad", "king secret\n");
  EXPECT_EQ(reason(tokens), "BAD_CREDENTIALS_FILE");
  tokens.token_file = WriteSecret("empty", "# nothing\n");
  EXPECT_EQ(reason(tokens), "BAD_CREDENTIALS_FILE");
  tokens.token_file = WriteSecret("open", "admin secret\n");
  chmod(tokens.token_file.c_str(), 0644);
  EXPECT_EQ(reason(tokens), "BAD_CREDENTIALS_FILE");
}

TEST_F(RpcServerTest, TokenToAnotherMachineNeedsTls) {
  ChannelOptions options;
  options.target = "192.0.2.1:5000";
  options.token_file = WriteSecret("mine", "s3cret\n");
  EXPECT_EQ(ReasonOf(MakeChannel(options).status()), "BAD_CHANNEL_OPTIONS");
  // A name that looks like loopback may be anybody's.
  options.target = "127.evil.example:5000";
  EXPECT_EQ(ReasonOf(MakeChannel(options).status()), "BAD_CHANNEL_OPTIONS");
}

}  // namespace
}  // namespace halfstep
