// SPDX-License-Identifier: Apache-2.0
// HTTP by CivetWeb. Every request is answered here, so that no file is ever served.
#include "common/metrics/http_server.h"

#include <civetweb.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/base/error_reason.h"
#include "common/base/logging.h"

namespace halfstep {

struct HttpServer::Impl {
  HttpServerOptions options;
  mg_context* context = nullptr;
  int port = 0;
};

namespace {

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
  const auto* options = static_cast<const HttpServerOptions*>(request->user_data);
  const std::string method = request->request_method;
  const std::string path = request->local_uri == nullptr ? "" : request->local_uri;
  const Response response = Answer(*options, method, path);
  const std::string head = absl::StrCat("HTTP/1.1 ", response.code, " ", response.reason,
                                        "\r\nContent-Type: ", response.type,
                                        "\r\nContent-Length: ", response.body.size(),
                                        "\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n");
  mg_write(connection, head.data(), head.size());
  if (method != "HEAD") mg_write(connection, response.body.data(), response.body.size());
  return response.code;
}

int LogMessage(const mg_connection*, const char* message) {
  LogDebug("http", {{"message", message}});
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
  return Error(
      absl::StatusCode::kUnavailable, "ADDRESS_IN_USE",
      absl::StrCat("cannot serve HTTP on ", address, ": ", detail,
                   "; stop the process that listens there or give another --http-address"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(HttpServerOptions options) {
  const std::string address = options.address;
  if (!IsAddress(address)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", address, "' is not an address; write host:port, such as 127.0.0.1:9464"));
  }
  auto impl = std::make_unique<Impl>();
  impl->options = std::move(options);

  // Few threads and short requests: this port is for one scraper and some probes.
  const char* settings[] = {"listening_ports",    address.c_str(), "num_threads", "4",
                            "request_timeout_ms", "5000",          nullptr};
  mg_callbacks callbacks;
  std::memset(&callbacks, 0, sizeof(callbacks));
  callbacks.begin_request = HandleRequest;
  callbacks.log_message = LogMessage;
  mg_init_data init = {&callbacks, &impl->options, settings};
  char text[256] = "";
  mg_error_data error = {};
  error.text = text;
  error.text_buffer_size = sizeof(text);
  impl->context = mg_start2(&init, &error);
  if (impl->context == nullptr) {
    return StartError(address, text[0] == '\0' ? "the port cannot be bound" : text);
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
    const std::string& address = impl_->options.address;
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
