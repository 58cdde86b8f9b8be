// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <set>

#include "common/base/file.h"
#include "common/metrics/learner_metrics.h"
#include "common/metrics/metrics_page.h"
#include "common/metrics/rollout_metrics.h"
#include "common/metrics/server_metrics.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;

std::string ScrapeOfEverything() {
  Registry registry;
  RolloutMetrics rollout(registry);
  LearnerMetrics learner(registry);
  ServerMetrics server(registry, {"halfstep.v1.WeightService/FetchModel"});
  return registry.Scrape();
}

TEST(MetricsTest, EveryMetricAndLabelValueIsExportedAtZeroFromTheStart) {
  const std::string scrape = ScrapeOfEverything();
  for (const metric::Entry& entry : metric::kAll) {
    const MetricInfo& info = *entry.info;
    const std::string name = info.name;
    EXPECT_THAT(scrape, HasSubstr("# HELP " + name + " " + info.help + "\n"));
    const std::string series = info.type == MetricType::kHistogram ? name + "_count" : name;
    if (info.label[0] == '\0') {
      EXPECT_THAT(scrape, HasSubstr("\n" + series + " 0\n"));
    }
    for (const char* value : info.values) {
      EXPECT_THAT(scrape, HasSubstr(series + "{" + info.label + "=\"" + value + "\"} 0\n"));
    }
  }
  EXPECT_THAT(scrape, HasSubstr("halfstep_grpc_server_call_started_total{method=\"other\"} 0\n"));
  EXPECT_THAT(scrape, HasSubstr("halfstep_build_info{version=\"0.1.0\"} 1\n"));
}

TEST(MetricsTest, NamesAreUniqueAndPrefixed) {
  std::set<std::string> names;
  for (const metric::Entry& entry : metric::kAll) {
    EXPECT_TRUE(names.insert(entry.info->name).second) << entry.info->name;
    EXPECT_EQ(std::string(entry.info->name).rfind("halfstep_", 0), 0u) << entry.info->name;
    EXPECT_EQ(entry.info->type == MetricType::kHistogram, !entry.info->buckets.empty())
        << entry.info->name;
  }
}

TEST(MetricsTest, ValuesReachTheScrape) {
  Registry registry;
  RolloutMetrics metrics(registry);
  metrics.requests_running.Set(3);
  metrics.generation_tokens.Increment(40);
  metrics.requests["stop"].Increment();
  metrics.time_to_first_token.Observe(0.2);
  const std::string scrape = registry.Scrape();
  EXPECT_THAT(scrape, HasSubstr("halfstep_rollout_num_requests_running 3\n"));
  EXPECT_THAT(scrape, HasSubstr("halfstep_rollout_generation_tokens_total 40\n"));
  EXPECT_THAT(scrape, HasSubstr("halfstep_rollout_requests_total{finish_reason=\"stop\"} 1\n"));
  EXPECT_THAT(scrape,
              HasSubstr("halfstep_rollout_time_to_first_token_seconds_bucket{le=\"0.25\"} 1\n"));
}

TEST(MetricsTest, UnknownLabelValueCountsAsOther) {
  Registry registry;
  LearnerMetrics metrics(registry);
  metrics.samples_dropped["never heard of"].Increment();
  EXPECT_EQ(metrics.samples_dropped["other"].Value(), 1);
}

TEST(MetricsTest, JobStateIsOneForOneStateOnly) {
  Registry registry;
  LearnerMetrics metrics(registry);
  metrics.job_state.SetOnly("queued");
  metrics.job_state.SetOnly("running");
  EXPECT_EQ(metrics.job_state["queued"].Value(), 0);
  EXPECT_EQ(metrics.job_state["running"].Value(), 1);
  metrics.job_state.SetOnly("");
  EXPECT_EQ(metrics.job_state["running"].Value(), 0);
}

TEST(MetricsTest, PromtoolFindsNothingToComplainAbout) {
  if (std::system("command -v promtool >/dev/null") != 0)
    GTEST_SKIP() << "promtool is not installed";
  TempDir dir;
  ASSERT_TRUE(WriteFileAtomic(dir / "scrape", ScrapeOfEverything()).ok());
  const std::string command =
      "promtool check metrics < " + (dir / "scrape") + " > " + (dir / "out") + " 2>&1";
  EXPECT_EQ(std::system(command.c_str()), 0) << ReadFile(dir / "out", 1 << 20).value();
}

TEST(MetricsPageTest, CommittedPageIsCurrent) {
  const char* source = std::getenv("HALFSTEP_SOURCE_DIR");
  ASSERT_NE(source, nullptr) << "run by ctest";
  EXPECT_EQ(ReadFile(std::string(source) + "/docs/metrics.md", 1 << 20).value_or(""), MetricsPage())
      << "make it again: halfstep_metrics_page > docs/metrics.md";
}

}  // namespace
}  // namespace halfstep
