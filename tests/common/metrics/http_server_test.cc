// SPDX-License-Identifier: Apache-2.0
#include "common/metrics/http_server.h"

#include <atomic>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/http_client.h"

namespace halfstep {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class HttpServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    HttpServerOptions options;
    options.metrics = [] { return std::string("metric_a 1\n"); };
    options.live = [] { return absl::OkStatus(); };
    options.ready = [this]() -> absl::Status {
      if (ready_) return absl::OkStatus();
      return absl::UnavailableError("no weights are loaded");
    };
    server_ = HttpServer::Start(std::move(options)).value();
  }

  std::atomic<bool> ready_{false};
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, ServesMetricsInPrometheusFormat) {
  const std::string answer = AskHttp(server_->port(), "GET /metrics");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(answer, HasSubstr("Content-Type: text/plain; version=0.0.4"));
  EXPECT_THAT(answer, EndsWith("\r\n\r\nmetric_a 1\n"));
}

TEST_F(HttpServerTest, IsAliveBeforeItIsReady) {
  EXPECT_THAT(AskHttp(server_->port(), "GET /livez"), StartsWith("HTTP/1.1 200"));
  const std::string answer = AskHttp(server_->port(), "GET /readyz");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 503 Service Unavailable"));
  EXPECT_THAT(answer, EndsWith("no weights are loaded\n"));
  ready_ = true;
  EXPECT_THAT(AskHttp(server_->port(), "GET /readyz"), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, HeadHasNoBody) {
  EXPECT_THAT(AskHttp(server_->port(), "HEAD /metrics"), EndsWith("\r\n\r\n"));
}

TEST_F(HttpServerTest, RefusesOtherPathsAndMethods) {
  EXPECT_THAT(AskHttp(server_->port(), "GET /etc/passwd"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(AskHttp(server_->port(), "GET /"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(AskHttp(server_->port(), "POST /metrics"), StartsWith("HTTP/1.1 405"));
  EXPECT_THAT(AskHttp(server_->port(), "PUT /x"), StartsWith("HTTP/1.1 405"));
}

TEST_F(HttpServerTest, PortInUseIsAClearError) {
  HttpServerOptions options;
  options.address = absl::StrCat("127.0.0.1:", server_->port());
  const absl::Status status = HttpServer::Start(std::move(options)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(status), "ADDRESS_IN_USE");
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat("127.0.0.1:", server_->port())));
}

TEST(HttpServerAddressTest, AnAddressOfAnotherMachineIsAnotherError) {
  HttpServerOptions options;
  options.address = "192.0.2.1:0";
  const absl::Status status = HttpServer::Start(std::move(options)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(status), "CANNOT_LISTEN") << status;
}

TEST(HttpServerAddressTest, RefusesWhatIsNotAnAddress) {
  for (const char* address : {"", "8080", "localhost", "127.0.0.1:x", "127.0.0.1:99999", ":80",
                              "127.0.0.1:1,127.0.0.1:2"}) {
    HttpServerOptions options;
    options.address = address;
    EXPECT_EQ(HttpServer::Start(std::move(options)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << address;
  }
}

}  // namespace
}  // namespace halfstep
