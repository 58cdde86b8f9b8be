// SPDX-License-Identifier: Apache-2.0
// Advantages on a handful of numbers.
#include "learner_server/algorithm/advantage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace halfstep {
namespace {

using Scores = std::vector<std::optional<double>>;
using ::testing::DoubleEq;
using ::testing::DoubleNear;
using ::testing::Each;
using ::testing::ElementsAre;

constexpr AdvantageKind kKinds[] = {AdvantageKind::kGroupMean, AdvantageKind::kGroupMeanStd,
                                    AdvantageKind::kLeaveOneOut};

TEST(GroupAdvantagesTest, GroupMeanSubtractsTheMean) {
  EXPECT_THAT(
      GroupAdvantages(AdvantageKind::kGroupMean, Scores{1, 0, 0, 1, 0}),
      ElementsAre(DoubleEq(0.6), DoubleEq(-0.4), DoubleEq(-0.4), DoubleEq(0.6), DoubleEq(-0.4)));
}

TEST(GroupAdvantagesTest, GroupMeanStdDividesByTheSampleDeviation) {
  // Mean 0.5, squared deviations sum to 1, n - 1 = 3.
  const double unit = 0.5 / (std::sqrt(1.0 / 3) + 1e-6);
  EXPECT_THAT(GroupAdvantages(AdvantageKind::kGroupMeanStd, Scores{1, 0, 0, 1}),
              ElementsAre(DoubleNear(unit, 1e-12), DoubleNear(-unit, 1e-12),
                          DoubleNear(-unit, 1e-12), DoubleNear(unit, 1e-12)));
}

TEST(GroupAdvantagesTest, LeaveOneOutComparesWithTheOthers) {
  // The first response against the mean of 0, 0.5, 2.
  EXPECT_THAT(GroupAdvantages(AdvantageKind::kLeaveOneOut, Scores{1, 0, 0.5, 2}),
              ElementsAre(DoubleNear(1 - 2.5 / 3, 1e-12), DoubleNear(0 - 3.5 / 3, 1e-12),
                          DoubleNear(0.5 - 3.0 / 3, 1e-12), DoubleNear(2 - 1.5 / 3, 1e-12)));
}

TEST(GroupAdvantagesTest, EqualScoresGiveExactZeros) {
  for (const AdvantageKind kind : kKinds) {
    EXPECT_THAT(GroupAdvantages(kind, Scores{0.1, 0.1, 0.1}), Each(0.0)) << Name(kind);
    EXPECT_THAT(GroupAdvantages(kind, Scores{1, 1, 1, 1, 1}), Each(0.0)) << Name(kind);
  }
}

TEST(GroupAdvantagesTest, UnscorableResponseLeavesTheBaseline) {
  for (const AdvantageKind kind : kKinds) {
    const std::vector<double> without = GroupAdvantages(kind, Scores{1, 0, 0});
    EXPECT_THAT(GroupAdvantages(kind, Scores{1, std::nullopt, 0, 0}),
                ElementsAre(without[0], 0.0, without[1], without[2]))
        << Name(kind);
  }
}

TEST(GroupAdvantagesTest, GroupsOfOneOrNoneHaveNoSignal) {
  for (const AdvantageKind kind : kKinds) {
    EXPECT_THAT(GroupAdvantages(kind, Scores{}), ElementsAre()) << Name(kind);
    EXPECT_THAT(GroupAdvantages(kind, Scores{3.0}), ElementsAre(0.0)) << Name(kind);
    EXPECT_THAT(GroupAdvantages(kind, Scores{3.0, std::nullopt}), ElementsAre(0.0, 0.0))
        << Name(kind);
    EXPECT_THAT(GroupAdvantages(kind, Scores{std::nullopt, std::nullopt}), ElementsAre(0.0, 0.0))
        << Name(kind);
  }
}

}  // namespace
}  // namespace halfstep
