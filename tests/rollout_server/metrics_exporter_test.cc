// SPDX-License-Identifier: Apache-2.0
// What the engine reports reaches the scrape, and no longer than it lasts.
#include "rollout_server/metrics_exporter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace halfstep {
namespace {

using ::testing::HasSubstr;

EngineStats BusyStats() {
  EngineStats stats;
  stats.sequences_running = 3;
  stats.sequences_waiting = 2;
  stats.kv_blocks_total = 8;
  stats.kv_blocks_free = 2;
  stats.steps = 10;
  stats.tokens_generated = 40;
  stats.saturated_stores = 5;
  stats.weight_swaps = 1;
  stats.version = 7;
  stats.last_swap = absl::FromUnixSeconds(1000);
  return stats;
}

TEST(MetricsExporterTest, GaugesFollowTheEngineAndCountersItsChanges) {
  Registry registry;
  MetricsExporter exporter(&registry);
  EngineStats stats = BusyStats();
  exporter.OnStep({}, stats);
  stats.tokens_generated = 43;
  stats.saturated_stores = 9;
  exporter.OnStep({}, stats);
  const std::string scrape = registry.Scrape();
  EXPECT_THAT(scrape, HasSubstr("halfstep_rollout_num_requests_running 3\n"));
  EXPECT_THAT(scrape, HasSubstr("halfstep_rollout_kv_cache_usage_ratio 0.75\n"));
  EXPECT_THAT(scrape, HasSubstr("halfstep_rollout_weight_version 7\n"));
  EXPECT_THAT(scrape, HasSubstr("halfstep_rollout_generation_tokens_total 43\n"));
  EXPECT_THAT(scrape, HasSubstr("halfstep_rollout_saturated_stores_total 9\n"));
}

TEST(MetricsExporterTest, AStoppedEngineLeavesItsCountsAndNoGauge) {
  Registry registry;
  MetricsExporter exporter(&registry);
  exporter.OnStep({}, BusyStats());
  exporter.OnEngineStopped();
  const std::string scrape = registry.Scrape();
  for (const char* gauge : {"num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio",
                            "weight_version", "weight_update_timestamp_seconds"}) {
    EXPECT_THAT(scrape, HasSubstr(std::string("halfstep_rollout_") + gauge + " 0\n"));
  }
  EXPECT_THAT(scrape, HasSubstr("halfstep_rollout_generation_tokens_total 40\n"));
}

TEST(MetricsExporterTest, TheNextEngineCountsFromZero) {
  Registry registry;
  MetricsExporter exporter(&registry);
  exporter.OnStep({}, BusyStats());
  exporter.OnEngineStopped();
  EngineStats next = BusyStats();
  next.version = 1;
  exporter.OnStep({}, next);
  EXPECT_THAT(registry.Scrape(), HasSubstr("halfstep_rollout_generation_tokens_total 80\n"));
  EXPECT_THAT(registry.Scrape(), HasSubstr("halfstep_rollout_weight_version 1\n"));
}

}  // namespace
}  // namespace halfstep
