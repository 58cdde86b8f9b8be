// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/metrics_exporter.h"

#include <algorithm>

namespace halfstep {
namespace {

const char* Label(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "cancelled";
}

void Advance(prometheus::Counter& counter, int64_t before, int64_t now) {
  counter.Increment(static_cast<double>(std::max<int64_t>(now - before, 0)));
}

}  // namespace

void MetricsExporter::OnStep(const StepReport& report, const EngineStats& stats) {
  metrics_.requests_running.Set(static_cast<double>(stats.sequences_running));
  metrics_.requests_waiting.Set(static_cast<double>(stats.sequences_waiting));
  metrics_.kv_cache_usage.Set(1 - static_cast<double>(stats.kv_blocks_free) /
                                      static_cast<double>(stats.kv_blocks_total));
  Advance(metrics_.prompt_tokens, last_.prompt_tokens, stats.prompt_tokens);
  Advance(metrics_.generation_tokens, last_.tokens_generated, stats.tokens_generated);
  Advance(metrics_.preemptions, last_.preemptions, stats.preemptions);
  Advance(metrics_.saturated_stores, last_.saturated_stores, stats.saturated_stores);
  if (stats.weight_swaps != last_.weight_swaps) {
    metrics_.weight_version.Set(static_cast<double>(stats.version));
    metrics_.weight_update_timestamp.Set(
        absl::ToDoubleSeconds(stats.last_swap - absl::UnixEpoch()));
  }
  for (const absl::Duration latency : report.first_token) {
    metrics_.time_to_first_token.Observe(absl::ToDoubleSeconds(latency));
  }
  for (const absl::Duration latency : report.next_token) {
    metrics_.inter_token_latency.Observe(absl::ToDoubleSeconds(latency));
  }
  for (const StepReport::Finished& finished : report.finished) {
    metrics_.requests[Label(finished.reason)].Increment();
    metrics_.request_latency.Observe(absl::ToDoubleSeconds(finished.latency));
  }
  last_ = stats;
}

void MetricsExporter::OnEngineStopped() {
  metrics_.requests_running.Set(0);
  metrics_.requests_waiting.Set(0);
  metrics_.kv_cache_usage.Set(0);
  metrics_.weight_version.Set(0);
  metrics_.weight_update_timestamp.Set(0);
  last_ = EngineStats();
}

void MetricsExporter::OnWeightsPrepared(absl::Duration took) {
  metrics_.weight_update_duration.Observe(absl::ToDoubleSeconds(took));
}

}  // namespace halfstep
