// SPDX-License-Identifier: Apache-2.0
#include "common/rpc/call_metrics.h"

#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/metrics/server_metrics.h"

namespace halfstep {
namespace {

class CallMetricsInterceptor : public grpc::experimental::Interceptor {
 public:
  CallMetricsInterceptor(const ServerMetrics& metrics, std::string method)
      : metrics_(metrics), method_(std::move(method)), started_(absl::Now()) {
    metrics_.calls_started[method_].Increment();
  }

  void Intercept(grpc::experimental::InterceptorBatchMethods* batch) override {
    if (batch->QueryInterceptionHookPoint(
            grpc::experimental::InterceptionHookPoints::POST_RECV_CLOSE)) {
      metrics_.call_duration[method_].Observe(absl::ToDoubleSeconds(absl::Now() - started_));
    }
    batch->Proceed();
  }

 private:
  const ServerMetrics& metrics_;
  const std::string method_;
  const absl::Time started_;
};

class CallMetricsFactory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  CallMetricsFactory(Registry* registry, std::vector<std::string> methods)
      : metrics_(*registry, std::move(methods)) {}

  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    const std::string method = info->method();
    return new CallMetricsInterceptor(metrics_, method.empty() ? method : method.substr(1));
  }

 private:
  const ServerMetrics metrics_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeCallMetrics(
    Registry* registry, std::vector<std::string> methods) {
  return std::make_unique<CallMetricsFactory>(registry, std::move(methods));
}

}  // namespace halfstep
