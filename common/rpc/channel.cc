// SPDX-License-Identifier: Apache-2.0
#include "common/rpc/channel.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/client_interceptor.h>

#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/rpc/endpoint.h"
#include "common/rpc/keepalive.h"

namespace halfstep {
namespace {

constexpr size_t kMaxPemBytes = 1 << 20;
constexpr size_t kMaxTokenFileBytes = 64 << 10;

// Later entries are the more special ones: gRPC takes the entry of the method itself before the one
// of its service. Streams have no timeout here, because only their callers know how long they
// should last.
constexpr char kServiceConfig[] = R"({
  "methodConfig": [
    {"name": [{"service": "halfstep.v1.TrainingJobService", "method": "CancelTrainingJob"},
              {"service": "halfstep.v1.TrainingJobService", "method": "PauseTrainingJob"},
              {"service": "halfstep.v1.TrainingJobService", "method": "ResumeTrainingJob"}],
     "timeout": "30s"},
    {"name": [{"service": "halfstep.v1.TrainingJobService", "method": "CreateTrainingJob"},
              {"service": "halfstep.v1.TrainingJobService", "method": "GetTrainingJob"},
              {"service": "halfstep.v1.TrainingJobService", "method": "ListTrainingJobs"},
              {"service": "halfstep.v1.GenerationService", "method": "GetServerInfo"}],
     "timeout": "30s",
     "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "1s",
                     "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}},
    {"name": [{"service": "halfstep.v1.TrainingJobService", "method": "WatchTrainingJob"},
              {"service": "halfstep.v1.WeightService"}],
     "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "1s",
                     "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}}
  ]})";

// Adds the token to every call. Call credentials of gRPC would refuse a channel without TLS, and so
// a server on loopback.
class TokenInterceptor : public grpc::experimental::Interceptor {
 public:
  explicit TokenInterceptor(const std::string& authorization) : authorization_(authorization) {}
  void Intercept(grpc::experimental::InterceptorBatchMethods* batch) override {
    if (batch->QueryInterceptionHookPoint(
            grpc::experimental::InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      batch->GetSendInitialMetadata()->emplace("authorization", authorization_);
    }
    batch->Proceed();
  }

 private:
  const std::string& authorization_;
};

class TokenInterceptorFactory : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit TokenInterceptorFactory(std::string token)
      : authorization_(absl::StrCat("Bearer ", token)) {}
  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo*) override {
    return new TokenInterceptor(authorization_);
  }

 private:
  const std::string authorization_;
};

absl::Status BadOptions(const std::string& message) {
  return Error(absl::StatusCode::kInvalidArgument, "BAD_CHANNEL_OPTIONS", message);
}

absl::Status CheckOptions(const ChannelOptions& options, const Endpoint& endpoint) {
  if (options.tls_cert_file.empty() != options.tls_key_file.empty()) {
    return BadOptions("a client certificate and its key go together");
  }
  if (!options.tls_cert_file.empty() && options.tls_ca_file.empty()) {
    return BadOptions("a client certificate needs the server's certificate authority too");
  }
  if (!options.token_file.empty() && options.tls_ca_file.empty() && !endpoint.IsLoopback() &&
      !options.insecure) {
    return BadOptions(
        absl::StrCat("refusing to send a token to ", endpoint.ToString(),
                     " unencrypted; give --tls-ca, or accept the risk with --insecure"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeCredentials(
    const ChannelOptions& options) {
  if (options.tls_ca_file.empty()) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions tls;
  HALFSTEP_ASSIGN_OR_RETURN(tls.pem_root_certs, ReadFile(options.tls_ca_file, kMaxPemBytes));
  if (!options.tls_cert_file.empty()) {
    HALFSTEP_ASSIGN_OR_RETURN(tls.pem_cert_chain, ReadFile(options.tls_cert_file, kMaxPemBytes));
    HALFSTEP_ASSIGN_OR_RETURN(tls.pem_private_key, ReadFile(options.tls_key_file, kMaxPemBytes));
  }
  return grpc::SslCredentials(tls);
}

absl::StatusOr<std::string> ReadToken(const std::string& path) {
  HALFSTEP_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxTokenFileBytes));
  const std::string token(absl::StripAsciiWhitespace(text.substr(0, text.find('\n'))));
  if (token.empty() || token.find(' ') != std::string::npos) {
    return BadOptions(
        absl::StrCat(path, ": expected a token on the first line and nothing beside it"));
  }
  return token;
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(const ChannelOptions& options) {
  HALFSTEP_ASSIGN_OR_RETURN(const Endpoint endpoint, ParseEndpoint(options.target));
  HALFSTEP_RETURN_IF_ERROR(CheckOptions(options, endpoint));
  HALFSTEP_ASSIGN_OR_RETURN(const auto credentials, MakeCredentials(options));
  grpc::ChannelArguments arguments;
  for (const auto& [name, value] : ClientKeepalive()) arguments.SetInt(name, value);
  // gRPC's own back-off grows to two minutes; a server that restarts is to be found soon.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  arguments.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  arguments.SetMaxSendMessageSize(static_cast<int>(options.max_message_bytes));
  arguments.SetServiceConfigJSON(kServiceConfig);
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  if (!options.token_file.empty()) {
    HALFSTEP_ASSIGN_OR_RETURN(std::string token, ReadToken(options.token_file));
    interceptors.push_back(std::make_unique<TokenInterceptorFactory>(std::move(token)));
  }
  return grpc::experimental::CreateCustomChannelWithInterceptors(
      endpoint.ToString(), credentials, arguments, std::move(interceptors));
}

std::unique_ptr<grpc::ClientContext> MakeContext(absl::Duration timeout) {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  return context;
}

}  // namespace halfstep
