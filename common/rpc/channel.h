// SPDX-License-Identifier: Apache-2.0
// Client channels: keepalive, TLS, bearer token, default deadlines and retries, the same for every
// client.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/rpc/server.h"

namespace halfstep {

struct ChannelOptions {
  // "host:port", "[v6]:port" or "unix:path".
  std::string target;
  // Allows a bearer token to travel unencrypted to another machine.
  bool insecure = false;
  // PEM file of the authorities that the server's certificate may come from; switches TLS on.
  std::string tls_ca_file;
  // PEM files of this client's certificate, for servers that ask for one. Only with `tls_ca_file`.
  std::string tls_cert_file;
  std::string tls_key_file;
  // File whose first line is the bearer token.
  std::string token_file;
  size_t max_message_bytes = kMaxMessageBytes;
};

// The channel connects when it is first used. Unary calls get a deadline of 30 s unless their
// context sets one; UNAVAILABLE is retried for reads and for calls that carry a request id, and for
// nothing else. Errors: INVALID_ARGUMENT for a bad address or options that do not go together, and
// those of reading files.
absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(const ChannelOptions& options);

// A context for one call that ends after `timeout`.
std::unique_ptr<grpc::ClientContext> MakeContext(absl::Duration timeout);

}  // namespace halfstep
