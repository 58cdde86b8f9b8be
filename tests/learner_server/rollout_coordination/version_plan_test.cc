// SPDX-License-Identifier: Apache-2.0
#include "learner_server/rollout_coordination/version_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

VersionServer Idle(SessionId id, std::optional<uint64_t> version) { return {id, version, false}; }
VersionServer Busy(SessionId id, uint64_t version) { return {id, version, true}; }

TEST(VersionPlanTest, SendsEverybodyToTheNewestWhenNothingWaits) {
  const VersionPlan plan = PlanVersions({}, {Idle(1, std::nullopt), Idle(2, 3)}, 4);
  EXPECT_THAT(plan.targets, ElementsAre(Pair(1, 4), Pair(2, 4)));
  EXPECT_FALSE(plan.starved);
}

TEST(VersionPlanTest, LowerVersionsComeFirst) {
  const VersionPlan plan = PlanVersions({{3, 9}, {4, 9}}, {Idle(1, 3), Idle(2, 3)}, 4);
  EXPECT_THAT(plan.targets, ElementsAre(Pair(1, 3), Pair(2, 3)));
}

TEST(VersionPlanTest, NoMoreServersThanGroups) {
  const VersionPlan plan = PlanVersions({{3, 1}, {4, 9}}, {Idle(1, 4), Idle(2, 4), Idle(3, 4)}, 4);
  EXPECT_THAT(plan.targets, ElementsAre(Pair(1, 3), Pair(2, 4), Pair(3, 4)));
}

TEST(VersionPlanTest, TakesTheOneThatIsThere) {
  const VersionPlan plan = PlanVersions({{3, 1}, {4, 9}}, {Idle(1, 4), Idle(2, 3)}, 4);
  EXPECT_THAT(plan.targets, ElementsAre(Pair(1, 4), Pair(2, 3)));
}

TEST(VersionPlanTest, BusyServersCountAndStay) {
  const VersionPlan plan = PlanVersions({{3, 1}, {4, 2}}, {Busy(1, 3), Idle(2, 3)}, 4);
  EXPECT_THAT(plan.targets, ElementsAre(Pair(2, 4)));
  EXPECT_FALSE(plan.starved);
}

TEST(VersionPlanTest, NamesTheVersionThatNobodyCanServe) {
  const VersionPlan plan = PlanVersions({{3, 1}, {4, 2}}, {Busy(1, 4), Busy(2, 4)}, 4);
  EXPECT_TRUE(plan.targets.empty());
  EXPECT_EQ(plan.starved, 3u);
}

TEST(VersionPlanTest, BusyServersFetchWhatIsNeededNext) {
  EXPECT_EQ(NextVersion({{4, 1}, {5, 1}}, 3, 6), 4u);
  EXPECT_EQ(NextVersion({{3, 1}}, 3, 6), 6u);
  EXPECT_EQ(NextVersion({}, 6, 6), std::nullopt);
  EXPECT_EQ(NextVersion({{2, 1}}, 6, 6), std::nullopt);
}

}  // namespace
}  // namespace halfstep
