// SPDX-License-Identifier: Apache-2.0
// Where a server says which addresses it was given when it asked for port 0.
#pragma once

#include <sys/types.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace halfstep {

// What a running server listens on, and which process it is: a file that an earlier server left
// behind is known by its process id.
struct ServerPorts {
  std::string grpc;  // "host:port"
  std::string http;  // "host:port"
  pid_t pid = -1;
};

// Writes {"grpc": ..., "http": ..., "pid": ...} at once and whole.
absl::Status WritePortFile(const std::string& path, const ServerPorts& ports);

// Not OK while there is no such file, or when it is not one of WritePortFile's.
absl::StatusOr<ServerPorts> ReadPortFile(const std::string& path);

}  // namespace halfstep
