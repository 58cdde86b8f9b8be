// SPDX-License-Identifier: Apache-2.0
#include "common/rpc/server.h"

#include <google/protobuf/descriptor.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <atomic>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/rpc/auth.h"
#include "common/rpc/call_metrics.h"
#include "common/rpc/endpoint.h"
#include "common/rpc/guarded_service.h"
#include "common/rpc/keepalive.h"
#include "grpc/health/v1/health.pb.h"
#include "kernels/check.h"

namespace halfstep {
namespace {

constexpr size_t kMaxPemBytes = 1 << 20;

absl::Status BadOptions(const std::string& reason, const std::string& message) {
  return Error(absl::StatusCode::kFailedPrecondition, reason, message);
}

absl::Status CheckOptions(const ServerOptions& options, const Endpoint& endpoint) {
  const bool tls = !options.tls_cert_file.empty();
  if (tls != !options.tls_key_file.empty()) {
    return BadOptions("BAD_TLS_OPTIONS", "--tls-cert and --tls-key go together");
  }
  if (!options.tls_client_ca_file.empty() && !tls) {
    return BadOptions("BAD_TLS_OPTIONS", "--tls-client-ca needs --tls-cert and --tls-key");
  }
  if (options.identity_file.empty() != options.tls_client_ca_file.empty()) {
    return BadOptions(
        "BAD_TLS_OPTIONS",
        "--tls-client-ca and --identity-file go together: one says which certificates are "
        "genuine, the other what role each name has");
  }
  if (endpoint.IsLoopback() || options.insecure) return absl::OkStatus();
  if (!tls) {
    return BadOptions(
        "INSECURE_ADDRESS",
        absl::StrCat("refusing to listen on ", endpoint.ToString(),
                     " without TLS, because other machines reach it; give --tls-cert and "
                     "--tls-key, listen on 127.0.0.1, or accept the risk with --insecure"));
  }
  if (options.token_file.empty() && options.identity_file.empty()) {
    return BadOptions(
        "INSECURE_ADDRESS",
        absl::StrCat("refusing to listen on ", endpoint.ToString(),
                     " where everybody would be admin; give --token-file or --tls-client-ca "
                     "with --identity-file, or accept the risk with --insecure"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Authorizer::Options> ReadCredentials(const ServerOptions& options) {
  Authorizer::Options result;
  if (!options.token_file.empty()) {
    HALFSTEP_ASSIGN_OR_RETURN(result.tokens, ReadRoleGrants(options.token_file));
  }
  if (!options.identity_file.empty()) {
    HALFSTEP_ASSIGN_OR_RETURN(result.identities, ReadRoleGrants(options.identity_file));
  }
  result.open = options.token_file.empty() && options.identity_file.empty();
  return result;
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeCredentials(
    const ServerOptions& options) {
  if (options.tls_cert_file.empty()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions tls(
      options.tls_client_ca_file.empty()
          ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
          : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  grpc::SslServerCredentialsOptions::PemKeyCertPair pair;
  HALFSTEP_ASSIGN_OR_RETURN(pair.cert_chain, ReadFile(options.tls_cert_file, kMaxPemBytes));
  HALFSTEP_ASSIGN_OR_RETURN(pair.private_key, ReadFile(options.tls_key_file, kMaxPemBytes));
  tls.pem_key_cert_pairs.push_back(std::move(pair));
  if (!options.tls_client_ca_file.empty()) {
    HALFSTEP_ASSIGN_OR_RETURN(tls.pem_root_certs,
                              ReadFile(options.tls_client_ca_file, kMaxPemBytes));
  }
  return grpc::SslServerCredentials(tls);
}

void RegisterPlugins() {
  static std::once_flag once;
  std::call_once(once, [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    // Mentioning the message links its descriptor in, so that reflection can describe the health
    // service.
    grpc::health::v1::HealthCheckRequest::descriptor();
  });
}

void SetLimits(const ServerOptions& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  builder.SetMaxSendMessageSize(static_cast<int>(options.max_message_bytes));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_streams_per_connection);
  grpc::ResourceQuota quota("halfstep");
  builder.SetResourceQuota(quota.Resize(kMaxTransportBytes));
  // Two servers on one port would share its calls at random.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  for (const auto& [name, value] : ServerKeepalive()) builder.AddChannelArgument(name, value);
}

}  // namespace

absl::Status CheckPlainAddress(const std::string& address, bool insecure) {
  HALFSTEP_ASSIGN_OR_RETURN(const Endpoint endpoint, ParseEndpoint(address));
  if (endpoint.IsLoopback() || insecure) return absl::OkStatus();
  return BadOptions(
      "INSECURE_ADDRESS",
      absl::StrCat("refusing to serve metrics on ", endpoint.ToString(),
                   " in plain text to everybody who reaches it; use 127.0.0.1 (and a proxy that "
                   "protects it), or accept the risk with --insecure"));
}

struct RpcServer::Impl {
  explicit Impl(Authorizer::Options options)
      : authorizer(std::move(options), HalfstepMethodRoles()) {}

  Authorizer authorizer;
  std::vector<std::unique_ptr<GuardedService>> services;
  std::unique_ptr<grpc::Server> server;
  std::string address;
  int port = 0;
  std::atomic<bool> stopped{false};
};

RpcServer::RpcServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

RpcServer::~RpcServer() { Stop(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(
    const ServerOptions& options, const std::vector<HostedService>& services) {
  HALFSTEP_ASSIGN_OR_RETURN(Endpoint endpoint, ParseEndpoint(options.listen));
  HALFSTEP_RETURN_IF_ERROR(CheckOptions(options, endpoint));
  HALFSTEP_ASSIGN_OR_RETURN(Authorizer::Options credentials, ReadCredentials(options));
  HALFSTEP_ASSIGN_OR_RETURN(const auto transport, MakeCredentials(options));
  HALFSTEP_RETURN_IF_ERROR(ProbeListen(endpoint));
  RegisterPlugins();

  auto impl = std::make_unique<Impl>(std::move(credentials));
  grpc::ServerBuilder builder;
  SetLimits(options, builder);
  const auto* pool = google::protobuf::DescriptorPool::generated_pool();
  std::vector<std::string> methods;
  for (const HostedService& hosted : services) {
    const auto* descriptor = pool->FindServiceByName(hosted.full_name);
    HALFSTEP_CHECK(descriptor != nullptr);
    for (int i = 0; i < descriptor->method_count(); ++i) {
      methods.push_back(absl::StrCat(hosted.full_name, "/", descriptor->method(i)->name()));
    }
    impl->services.push_back(
        std::make_unique<GuardedService>(hosted.service, *descriptor, &impl->authorizer));
    builder.RegisterService(impl->services.back().get());
  }
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  if (options.metrics != nullptr) {
    interceptors.push_back(MakeCallMetrics(options.metrics, std::move(methods)));
  }
  interceptors.push_back(std::make_unique<AuthInterceptorFactory>(&impl->authorizer));
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  builder.AddListeningPort(endpoint.ToString(), transport, &impl->port);
  impl->server = builder.BuildAndStart();
  if (impl->server == nullptr || impl->port == 0) {
    return WithReason(absl::UnavailableError(absl::StrCat(
                          "cannot listen on ", endpoint.ToString(),
                          "; choose another address, and check the TLS files if given")),
                      {"CANNOT_LISTEN", {{"address", endpoint.ToString()}}});
  }
  if (endpoint.is_unix) {
    impl->port = 0;
  } else {
    endpoint.port = impl->port;
  }
  impl->address = endpoint.ToString();
  std::unique_ptr<RpcServer> server(new RpcServer(std::move(impl)));
  server->SetServing(false);
  return server;
}

const std::string& RpcServer::address() const { return impl_->address; }

int RpcServer::port() const { return impl_->port; }

void RpcServer::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* health = impl_->server->GetHealthCheckService();
  health->SetServingStatus(serving);
  health->SetServingStatus("", serving);
  health->SetServingStatus("readiness", serving);
}

void RpcServer::Stop(absl::Duration grace) {
  if (impl_->stopped.exchange(true)) return;
  impl_->server->GetHealthCheckService()->Shutdown();
  impl_->server->Shutdown(absl::ToChronoTime(absl::Now() + grace));
  impl_->server->Wait();
}

}  // namespace halfstep
