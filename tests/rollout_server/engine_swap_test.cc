// SPDX-License-Identifier: Apache-2.0
// Weights that change under an engine with and without work of their version.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <utility>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "rollout_server/generation/engine.h"
#include "tests/rollout_server/engine_fixture.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(EngineSwapTest, SwapsWeightsOnlyAfterGroupsOfTheOldVersion) {
  auto engine = MakeServingEngine(TinyOptions(), /*seed=*/1, /*version=*/5);
  GroupRequest old_group = MakeGroup(0, 10, 4, 50);
  old_group.version = 5;
  GroupRequest new_group = MakeGroup(1, 10, 4, 50);
  new_group.version = 6;
  Outcome old_outcome, new_outcome;
  absl::Notification swapped;
  std::atomic<size_t> finished_before_swap{0};
  bool asked = false;
  auto on_token = [&](const GeneratedToken&) {
    if (std::exchange(asked, true)) return;
    engine->SetWeights(TinyWeights(2), 6, [&](const absl::Status& status) {
      EXPECT_TRUE(status.ok());
      finished_before_swap = old_outcome.samples().size();
      swapped.Notify();
    });
    ASSERT_TRUE(engine->Submit(new_group, new_outcome.callbacks()).ok());
  };
  ASSERT_TRUE(engine->Submit(old_group, old_outcome.callbacks(on_token)).ok());
  ASSERT_TRUE(swapped.WaitForNotificationWithTimeout(kPatience));
  ASSERT_TRUE(engine->Drain(absl::Now() + kPatience));
  EXPECT_EQ(finished_before_swap, 4u);
  for (const Sample& sample : old_outcome.samples()) {
    EXPECT_THAT(sample.versions,
                ElementsAre(VersionRun{5, static_cast<uint32_t>(sample.tokens.size())}));
  }
  ASSERT_EQ(new_outcome.samples().size(), 4u);
  auto fresh = MakeServingEngine(TinyOptions(), 2, 6);
  std::vector<Sample> held = new_outcome.samples();
  std::sort(held.begin(), held.end(),
            [](const Sample& a, const Sample& b) { return a.index < b.index; });
  ExpectSame(Generate(fresh.get(), {new_group})[0], held);
}

TEST(EngineSwapTest, RefusesAGroupOfAVersionThatIsNotServed) {
  auto engine = MakeServingEngine(TinyOptions(), 1, 5);
  GroupRequest request = MakeGroup(0, 10, 1, 5);
  request.version = 4;
  const auto samples = GenerateAll(engine.get(), {request}, absl::Now() + kPatience);
  EXPECT_EQ(samples.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(samples.status()), "VERSION_NOT_SERVED");
  EXPECT_THAT(std::string(samples.status().message()), HasSubstr("version 5 is served"));
}

TEST(EngineSwapTest, RefusesWorkBeforeAnyWeights) {
  auto engine = MakeEngine(TinyOptions());
  const auto samples = GenerateAll(engine.get(), {MakeGroup(0, 10, 1, 5)}, absl::Now() + kPatience);
  EXPECT_EQ(ReasonOf(samples.status()), "VERSION_NOT_SERVED");
}

TEST(EngineSwapTest, TokensOfAnUnpinnedGroupCarryTheirVersions) {
  EngineOptions options = TinyOptions();
  options.config.eos_token_ids = {};
  auto engine = MakeServingEngine(options, 1, 5);
  Outcome outcome;
  int tokens = 0;
  auto on_token = [&](const GeneratedToken&) {
    if (++tokens == 10) engine->SetWeights(TinyWeights(2), 6, [](const absl::Status&) {});
  };
  ASSERT_TRUE(engine->Submit(MakeGroup(0, 10, 1, 30), outcome.callbacks(on_token)).ok());
  ASSERT_TRUE(engine->Drain(absl::Now() + kPatience));
  ASSERT_EQ(outcome.samples().size(), 1u);
  EXPECT_THAT(outcome.samples()[0].versions, ElementsAre(VersionRun{5, 10}, VersionRun{6, 20}));
}

// Also several samples of a prompt longer than a cache block, one of them not begun at the swap.
TEST(EngineSwapTest, ASwapInTheMiddleKeepsTokensAndRecomputesCachesUnderTheNewWeights) {
  EngineOptions options = TinyOptions();
  options.config.eos_token_ids = {};
  options.max_sequences = 3;
  auto engine = MakeServingEngine(options, 1, 5);
  const GroupRequest request = MakeGroup(0, 21, 4, 24);
  Outcome outcome;
  int tokens = 0;
  auto on_token = [&](const GeneratedToken&) {
    if (++tokens == 30) engine->SetWeights(TinyWeights(2), 6, [](const absl::Status&) {});
  };
  ASSERT_TRUE(engine->Submit(request, outcome.callbacks(on_token)).ok());
  ASSERT_TRUE(engine->Drain(absl::Now() + kPatience));
  ASSERT_EQ(outcome.samples().size(), 4u);
  EXPECT_EQ(engine->stats().preemptions, 0) << "for want of blocks there was none";
  int spanning = 0;
  for (const Sample& sample : outcome.samples()) {
    size_t begin = 0;
    spanning += sample.versions.size() == 2;
    for (const VersionRun& run : sample.versions) {
      const auto weights = TinyWeights(run.version == 5 ? 1 : 2);
      const std::vector<float> expected =
          LearnerLogProbs(*weights, {{request.prompt, sample.tokens}}, 1)[0];
      EXPECT_EQ(std::memcmp(expected.data() + begin, sample.log_probs.data() + begin,
                            run.count * sizeof(float)),
                0)
          << "sample " << sample.index << ", tokens from " << begin << " of version "
          << run.version;
      begin += run.count;
    }
    EXPECT_EQ(begin, sample.tokens.size());
  }
  EXPECT_EQ(spanning, 3);
}

TEST(EngineSwapTest, LaterWeightsReplaceThoseThatWait) {
  auto engine = MakeServingEngine(TinyOptions(), 1, 5);
  GroupRequest request = MakeGroup(0, 10, 2, 40);
  request.version = 5;
  Outcome outcome;
  bool asked = false;
  absl::Status first;
  absl::Notification swapped;
  auto on_token = [&](const GeneratedToken&) {
    if (std::exchange(asked, true)) return;
    engine->SetWeights(TinyWeights(2), 6, [&](const absl::Status& status) { first = status; });
    engine->SetWeights(TinyWeights(3), 7, [&](const absl::Status&) { swapped.Notify(); });
  };
  ASSERT_TRUE(engine->Submit(request, outcome.callbacks(on_token)).ok());
  ASSERT_TRUE(swapped.WaitForNotificationWithTimeout(kPatience));
  engine->Stop();
  EXPECT_EQ(first.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(engine->stats().version, 7u);
}

}  // namespace
}  // namespace halfstep
