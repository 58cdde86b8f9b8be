// SPDX-License-Identifier: Apache-2.0
// Counts and times every call of a server.
#pragma once

#include <grpcpp/support/server_interceptor.h>

#include <memory>
#include <string>
#include <vector>

namespace halfstep {

class Registry;

// Makes the metrics of ServerMetrics in `registry`, one series per method
// ("package.Service/Method"; other methods count together), and returns what fills them. `registry`
// must outlive the server; at most one server per registry.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeCallMetrics(
    Registry* registry, std::vector<std::string> methods);

}  // namespace halfstep
