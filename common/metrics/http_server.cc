// SPDX-License-Identifier: Apache-2.0
// HTTP by CivetWeb. Every request is answered here, so that no file is ever served.
#include "common/metrics/http_server.h"

#include <civetweb.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/base/error_reason.h"
#include "common/base/logging.h"

namespace halfstep {

namespace {

constexpr size_t kEnoughToExplain = 500;

// What CivetWeb's callbacks are given.
struct Shared {
  HttpServerOptions options;
  absl::Mutex mutex;
  std::string first_messages ABSL_GUARDED_BY(mutex);  // of CivetWeb's log, joined
};

struct Response {
  int code = 200;
  const char* reason = "OK";
  const char* type = "text/plain; charset=utf-8";
  std::string body;
};

Response Probe(const std::function<absl::Status()>& probe) {
  const absl::Status status = probe();
  if (status.ok()) return {.body = "ok\n"};
  return {
      .code = 503, .reason = "Service Unavailable", .body = absl::StrCat(status.message(), "\n")};
}

Response Answer(const HttpServerOptions& options, const std::string& method,
                const std::string& path) {
  if (method != "GET" && method != "HEAD") {
    return {.code = 405, .reason = "Method Not Allowed", .body = "only GET and HEAD are served\n"};
  }
  if (path == "/metrics") {
    return {.type = "text/plain; version=0.0.4; charset=utf-8", .body = options.metrics()};
  }
  if (path == "/livez") return Probe(options.live);
  if (path == "/readyz") return Probe(options.ready);
  return {.code = 404,
          .reason = "Not Found",
          .body = "nothing here; there are /metrics, /livez and /readyz\n"};
}

int HandleRequest(mg_connection* connection) {
  const mg_request_info* request = mg_get_request_info(connection);
  const auto* shared = static_cast<const Shared*>(request->user_data);
  const std::string method = request->request_method;
  const std::string path = request->local_uri == nullptr ? "" : request->local_uri;
  const Response response = Answer(shared->options, method, path);
  const std::string head = absl::StrCat("HTTP/1.1 ", response.code, " ", response.reason,
                                        "\r\nContent-Type: ", response.type,
                                        "\r\nContent-Length: ", response.body.size(),
                                        "\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n");
  mg_write(connection, head.data(), head.size());
  if (method != "HEAD") mg_write(connection, response.body.data(), response.body.size());
  return response.code;
}

int LogMessage(const mg_connection* connection, const char* message) {
  LogDebug("http", {{"message", message}});
  auto* shared = static_cast<Shared*>(mg_get_user_data(mg_get_context(connection)));
  absl::MutexLock lock(&shared->mutex);
  if (shared->first_messages.size() > kEnoughToExplain) return 1;
  absl::StrAppend(&shared->first_messages, shared->first_messages.empty() ? "" : "; ", message);
  return 1;
}

// "host:port" with a numeric port.
bool IsAddress(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  return colon != std::string::npos && colon > 0 && address.find(',') == std::string::npos &&
         absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 0 && port <= 65535;
}

// Opens and closes a connection to `host`, which may be in brackets.
void Knock(std::string host, int port) {
  if (host.front() == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return;
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd >= 0) {
    [[maybe_unused]] const int result = connect(fd, found->ai_addr, found->ai_addrlen);
    close(fd);
  }
  freeaddrinfo(found);
}

absl::Status StartError(const std::string& address, const std::string& detail) {
  const bool in_use = detail.find(std::strerror(EADDRINUSE)) != std::string::npos;
  return Error(absl::StatusCode::kUnavailable, in_use ? "ADDRESS_IN_USE" : "CANNOT_LISTEN",
               absl::StrCat("cannot serve HTTP on ", address, ": ", detail, "; ",
                            in_use ? "stop the process that listens there or give" : "give",
                            " another --http"));
}

}  // namespace

struct HttpServer::Impl {
  Shared shared;
  mg_context* context = nullptr;
  int port = 0;
};

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(HttpServerOptions options) {
  const std::string address = options.address;
  if (!IsAddress(address)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", address, "' is not an address; write host:port, such as 127.0.0.1:9464"));
  }
  auto impl = std::make_unique<Impl>();
  impl->shared.options = std::move(options);

  // Few threads and short requests: this port is for one scraper and some probes.
  const char* settings[] = {"listening_ports",    address.c_str(), "num_threads", "4",
                            "request_timeout_ms", "5000",          nullptr};
  mg_callbacks callbacks;
  std::memset(&callbacks, 0, sizeof(callbacks));
  callbacks.begin_request = HandleRequest;
  callbacks.log_message = LogMessage;
  mg_init_data init = {&callbacks, &impl->shared, settings};
  impl->context = mg_start2(&init, nullptr);
  if (impl->context == nullptr) {
    absl::MutexLock lock(&impl->shared.mutex);
    return StartError(address, impl->shared.first_messages);
  }
  mg_server_port port;
  if (mg_get_server_ports(impl->context, 1, &port) != 1) {
    mg_stop(impl->context);
    return absl::InternalError(absl::StrCat("no port after listening on ", address));
  }
  impl->port = port.port;
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

HttpServer::~HttpServer() {
  // CivetWeb looks for its stop flag only after an accept or every two seconds.
  absl::Notification stopped;
  std::thread knocker([&] {
    const std::string& address = impl_->shared.options.address;
    const std::string host = address.substr(0, address.rfind(':'));
    do {
      Knock(host, impl_->port);
    } while (!stopped.WaitForNotificationWithTimeout(absl::Milliseconds(20)));
  });
  mg_stop(impl_->context);
  stopped.Notify();
  knocker.join();
}

int HttpServer::port() const { return impl_->port; }

}  // namespace halfstep
