// SPDX-License-Identifier: Apache-2.0
// The rollout server's metrics as members; names.h says what each means.
#pragma once

#include "common/metrics/registry.h"

namespace halfstep {

// Refers to `registry`, which must outlive it. Thread-safe.
struct RolloutMetrics {
  explicit RolloutMetrics(Registry& registry);

  prometheus::Gauge& requests_running;
  prometheus::Gauge& requests_waiting;
  prometheus::Gauge& kv_cache_usage;
  prometheus::Counter& prompt_tokens;
  prometheus::Counter& generation_tokens;
  Labelled<prometheus::Counter> requests;  // by metric::kFinishReasons
  prometheus::Counter& preemptions;
  prometheus::Histogram& time_to_first_token;
  prometheus::Histogram& inter_token_latency;
  prometheus::Histogram& request_latency;
  prometheus::Gauge& weight_version;
  prometheus::Gauge& weight_update_timestamp;
  prometheus::Histogram& weight_update_duration;
  prometheus::Counter& saturated_stores;
};

}  // namespace halfstep
