// SPDX-License-Identifier: Apache-2.0
// A gRPC server with what every server of ours has: health, reflection, authorization, call
// metrics, bounded messages, keepalive, safe addresses and an orderly stop.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace grpc {
class Service;
}

namespace halfstep {

class Registry;

// Largest message either side accepts, unless set otherwise.
inline constexpr size_t kMaxMessageBytes = 16 << 20;
// Calls that one connection may have open at once; further ones wait on the client's side. Messages
// are read before their sender is known to be allowed to send them, so this bounds what anybody may
// make a server hold.
inline constexpr int kMaxStreamsPerConnection = 256;
// What messages on their way in and out may take together; beyond it connections are slowed down.
inline constexpr size_t kMaxTransportBytes = size_t{512} << 20;

struct ServerOptions {
  // "host:port", "[v6]:port" or "unix:path"; port 0 lets the kernel choose.
  std::string listen = "127.0.0.1:0";
  // Allows an address that other machines reach without TLS or without credentials.
  bool insecure = false;
  // PEM files. Certificate and key together switch TLS on; a client CA makes client certificates
  // mandatory.
  std::string tls_cert_file;
  std::string tls_key_file;
  std::string tls_client_ca_file;
  // Lines "role token" and "role certificate-name" (ReadRoleGrants). Without either file every
  // caller is admin, which is allowed on loopback only.
  std::string token_file;
  std::string identity_file;
  size_t max_message_bytes = kMaxMessageBytes;
  int max_streams_per_connection = kMaxStreamsPerConnection;
  // Where call metrics go; may be null, must outlive the server, serves one server only.
  Registry* metrics = nullptr;
};

// A service to host, with its full name ("halfstep.v1.TrainingJobService"). Implemented with the
// callback API; must outlive the server.
struct HostedService {
  grpc::Service* service;
  std::string full_name;
};

// Whether an address that is always served without TLS and credentials, such as that of metrics,
// may be listened on: FAILED_PRECONDITION (reason INSECURE_ADDRESS) when other machines reach it
// and `insecure` is not set; INVALID_ARGUMENT (reason BAD_ADDRESS) when it cannot be understood.
absl::Status CheckPlainAddress(const std::string& address, bool insecure);

// Listening from Start to Stop. Thread-safe.
class RpcServer {
 public:
  // Errors say what to change: INVALID_ARGUMENT or FAILED_PRECONDITION for options that do not go
  // together (reason INSECURE_ADDRESS for a public address without protection), UNAVAILABLE (reason
  // ADDRESS_IN_USE) and the like for addresses that cannot be listened on.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(
      const ServerOptions& options, const std::vector<HostedService>& services);
  // Stops without waiting if Stop has not been called.
  ~RpcServer();

  // What clients dial, with the port that was chosen.
  const std::string& address() const;
  // 0 for a unix socket.
  int port() const;

  // What grpc.health.v1.Health answers for the whole server ("") and for "readiness". Starts as not
  // serving.
  void SetServing(bool serving);

  // Refuses new calls, waits up to `grace` for running ones, cancels the rest and returns when all
  // have ended. Streams must end by themselves on cancellation.
  void Stop(absl::Duration grace);

 private:
  struct Impl;
  explicit RpcServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace halfstep
