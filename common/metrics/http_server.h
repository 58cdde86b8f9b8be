// SPDX-License-Identifier: Apache-2.0
// The HTTP side of a server: metrics and probes, for machines on the inside.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace halfstep {

// Answers everybody who reaches the address, in plain text: CheckPlainAddress (common/rpc/server.h)
// says which one may be given. The callbacks run on the server's threads, several at a time, and
// must return soon.
struct HttpServerOptions {
  std::string address = "127.0.0.1:0";   // host:port; port 0 lets the kernel choose
  std::function<std::string()> metrics;  // answers /metrics
  // Answer /livez and /readyz: OK gives 200, an error 503 with its message as the body. Alive: the
  // process makes progress; ready: it can do its work.
  std::function<absl::Status()> live;
  std::function<absl::Status()> ready;
};

// Serves from Start until destruction, which waits for the requests in progress. Thread-safe.
class HttpServer {
 public:
  // UNAVAILABLE when the address cannot be listened on, with reason ADDRESS_IN_USE when another
  // process does so, else CANNOT_LISTEN; INVALID_ARGUMENT when the address cannot be understood.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(HttpServerOptions options);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const;

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace halfstep
