// SPDX-License-Identifier: Apache-2.0
// TLS and client certificates between a real server and real channels.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/rpc/channel.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "halfstep/v1/training_job.grpc.pb.h"
#include "tests/common/rpc/test_certificates.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {
namespace {

class TlsTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& contents) {
    EXPECT_TRUE(WriteFileAtomic(dir_ / name, contents).ok());
    chmod((dir_ / name).c_str(), 0600);
    return dir_ / name;
  }

  ServerOptions TlsServer() {
    const PemPair pair = authority_.Issue("server");
    ServerOptions options;
    options.tls_cert_file = Write("server.pem", pair.certificate);
    options.tls_key_file = Write("server.key", pair.key);
    return options;
  }

  ChannelOptions TlsClient(const RpcServer& server) {
    ChannelOptions options;
    options.target = server.address();
    options.tls_ca_file = Write("ca.pem", authority_.certificate());
    return options;
  }

  void ShowCertificate(ChannelOptions& options, const TestAuthority& authority,
                       const std::string& common_name) {
    const PemPair pair = authority.Issue(common_name);
    options.tls_cert_file = Write(common_name + ".pem", pair.certificate);
    options.tls_key_file = Write(common_name + ".key", pair.key);
  }

  std::unique_ptr<RpcServer> Start(const ServerOptions& options) {
    auto server =
        RpcServer::Start(options, {{&service_, v1::TrainingJobService::service_full_name()}});
    EXPECT_TRUE(server.ok()) << server.status();
    return *std::move(server);
  }

  // The generated service answers UNIMPLEMENTED to whoever may call.
  absl::Status Call(const ChannelOptions& options) {
    auto channel = MakeChannel(options);
    if (!channel.ok()) return channel.status();
    v1::TrainingJob job;
    const auto context = MakeContext(absl::Seconds(20));
    return FromGrpcStatus(
        v1::TrainingJobService::NewStub(*channel)->CancelTrainingJob(context.get(), {}, &job));
  }

  TempDir dir_;
  TestAuthority authority_;
  v1::TrainingJobService::CallbackService service_;
};

TEST_F(TlsTest, ServesEncryptedAndRefusesPlainClients) {
  const auto server = Start(TlsServer());
  EXPECT_EQ(Call(TlsClient(*server)).code(), absl::StatusCode::kUnimplemented);
  ChannelOptions plain;
  plain.target = server->address();
  EXPECT_EQ(Call(plain).code(), absl::StatusCode::kUnavailable);
}

TEST_F(TlsTest, AServerOfAnotherAuthorityIsNotTrusted) {
  const auto server = Start(TlsServer());
  ChannelOptions client = TlsClient(*server);
  client.tls_ca_file = Write("other.pem", TestAuthority().certificate());
  EXPECT_EQ(Call(client).code(), absl::StatusCode::kUnavailable);
}

TEST_F(TlsTest, CertificateNamesGiveRoles) {
  ServerOptions options = TlsServer();
  options.tls_client_ca_file = Write("ca.pem", authority_.certificate());
  options.identity_file = Write("identities", "submitter alice\nviewer bob\n");
  const auto server = Start(options);
  ChannelOptions client = TlsClient(*server);
  EXPECT_EQ(Call(client).code(), absl::StatusCode::kUnavailable) << "without a certificate";
  ShowCertificate(client, authority_, "alice");
  EXPECT_EQ(Call(client).code(), absl::StatusCode::kUnimplemented);
  ShowCertificate(client, authority_, "bob");
  EXPECT_EQ(ReasonOf(Call(client)), "ROLE_NOT_ALLOWED");
  ShowCertificate(client, authority_, "carol");
  EXPECT_EQ(ReasonOf(Call(client)), "CREDENTIALS_MISSING");
  ShowCertificate(client, TestAuthority(), "alice");
  EXPECT_EQ(Call(client).code(), absl::StatusCode::kUnavailable) << "of another authority";
}

TEST_F(TlsTest, APublicAddressWithTlsAndTokensIsAllowed) {
  ServerOptions options = TlsServer();
  options.listen = "0.0.0.0:0";
  EXPECT_EQ(ReasonOf(RpcServer::Start(options, {}).status()), "INSECURE_ADDRESS");
  options.token_file = Write("tokens", "admin secret\n");
  const auto server = Start(options);
  ChannelOptions client = TlsClient(*server);
  client.target = "127.0.0.1:" + std::to_string(server->port());
  client.token_file = Write("token", "secret\n");
  EXPECT_EQ(Call(client).code(), absl::StatusCode::kUnimplemented);
}

TEST_F(TlsTest, MissingFilesAreNamed) {
  ServerOptions options = TlsServer();
  options.tls_key_file = dir_ / "nothing.key";
  const auto server = RpcServer::Start(options, {});
  EXPECT_EQ(server.status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(server.status().message().find("nothing.key"), absl::string_view::npos);
}

}  // namespace
}  // namespace halfstep
