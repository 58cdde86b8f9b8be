// SPDX-License-Identifier: Apache-2.0
// Addresses that servers listen on and clients dial: "host:port", "[v6]:port" or "unix:path".
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace halfstep {

struct Endpoint {
  bool is_unix = false;
  std::string host;  // without brackets
  int port = 0;      // 0: the kernel chooses
  std::string path;  // of a unix socket

  // Only this machine can reach it: a unix socket, "localhost", 127.0.0.0/8 or ::1. Another host
  // name may mean any machine, whatever it looks like.
  bool IsLoopback() const;
  std::string ToString() const;
};

// INVALID_ARGUMENT (reason BAD_ADDRESS) names the text and what is accepted.
absl::StatusOr<Endpoint> ParseEndpoint(const std::string& address);

// Why this machine would not listen there, as far as a trial bind can tell; OK when it would.
absl::Status ProbeListen(const Endpoint& endpoint);

}  // namespace halfstep
