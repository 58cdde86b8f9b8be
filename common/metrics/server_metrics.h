// SPDX-License-Identifier: Apache-2.0
// Metrics that both servers have.
#pragma once

#include <string>
#include <vector>

#include "common/metrics/registry.h"

namespace halfstep {

// Refers to `registry`, which must outlive it. Thread-safe.
struct ServerMetrics {
  // `methods`: every gRPC method served, such as "halfstep.v1.WeightService/FetchModel"; "other" is
  // added for calls of unknown methods.
  ServerMetrics(Registry& registry, std::vector<std::string> methods);

  Labelled<prometheus::Counter> calls_started;    // by method
  Labelled<prometheus::Histogram> call_duration;  // by method
};

}  // namespace halfstep
