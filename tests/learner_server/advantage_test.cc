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

constexpr AdvantageKind kGroupKinds[] = {AdvantageKind::kGroupMean, AdvantageKind::kGroupMeanStd,
                                         AdvantageKind::kLeaveOneOut,
                                         AdvantageKind::kGroupMeanBatchWhiten};

// A batch of one group.
std::vector<double> AdvantagesOf(AdvantageKind kind, const Scores& scores) {
  const ScoredGroup group{scores};
  return BatchAdvantages(kind, {&group, 1});
}

struct Batch {
  std::vector<Scores> scores;
  std::vector<std::optional<double>> greedy;

  std::vector<ScoredGroup> groups() const {
    std::vector<ScoredGroup> groups;
    for (size_t g = 0; g < scores.size(); ++g) {
      groups.push_back({scores[g], greedy.empty() ? std::nullopt : greedy[g]});
    }
    return groups;
  }
};

TEST(BatchAdvantagesTest, GroupMeanSubtractsTheMean) {
  EXPECT_THAT(
      AdvantagesOf(AdvantageKind::kGroupMean, Scores{1, 0, 0, 1, 0}),
      ElementsAre(DoubleEq(0.6), DoubleEq(-0.4), DoubleEq(-0.4), DoubleEq(0.6), DoubleEq(-0.4)));
}

TEST(BatchAdvantagesTest, GroupMeanStdDividesByTheSampleDeviation) {
  // Mean 0.5, squared deviations sum to 1, n - 1 = 3.
  const double unit = 0.5 / (std::sqrt(1.0 / 3) + 1e-6);
  EXPECT_THAT(AdvantagesOf(AdvantageKind::kGroupMeanStd, Scores{1, 0, 0, 1}),
              ElementsAre(DoubleNear(unit, 1e-12), DoubleNear(-unit, 1e-12),
                          DoubleNear(-unit, 1e-12), DoubleNear(unit, 1e-12)));
}

TEST(BatchAdvantagesTest, LeaveOneOutComparesWithTheOthers) {
  // The first response against the mean of 0, 0.5, 2.
  EXPECT_THAT(AdvantagesOf(AdvantageKind::kLeaveOneOut, Scores{1, 0, 0.5, 2}),
              ElementsAre(DoubleNear(1 - 2.5 / 3, 1e-12), DoubleNear(0 - 3.5 / 3, 1e-12),
                          DoubleNear(0.5 - 3.0 / 3, 1e-12), DoubleNear(2 - 1.5 / 3, 1e-12)));
}

TEST(BatchAdvantagesTest, EqualScoresGiveExactZeros) {
  for (const AdvantageKind kind : kGroupKinds) {
    EXPECT_THAT(AdvantagesOf(kind, Scores{0.1, 0.1, 0.1}), Each(0.0)) << Name(kind);
    EXPECT_THAT(AdvantagesOf(kind, Scores{1, 1, 1, 1, 1}), Each(0.0)) << Name(kind);
  }
}

TEST(BatchAdvantagesTest, UnscorableResponseLeavesTheBaseline) {
  for (const AdvantageKind kind : kGroupKinds) {
    const std::vector<double> without = AdvantagesOf(kind, Scores{1, 0, 0});
    EXPECT_THAT(AdvantagesOf(kind, Scores{1, std::nullopt, 0, 0}),
                ElementsAre(without[0], 0.0, without[1], without[2]))
        << Name(kind);
  }
}

TEST(BatchAdvantagesTest, GroupsOfOneOrNoneHaveNoSignal) {
  for (const AdvantageKind kind : kGroupKinds) {
    EXPECT_THAT(AdvantagesOf(kind, Scores{}), ElementsAre()) << Name(kind);
    EXPECT_THAT(AdvantagesOf(kind, Scores{3.0}), ElementsAre(0.0)) << Name(kind);
    EXPECT_THAT(AdvantagesOf(kind, Scores{3.0, std::nullopt}), ElementsAre(0.0, 0.0)) << Name(kind);
    EXPECT_THAT(AdvantagesOf(kind, Scores{std::nullopt, std::nullopt}), ElementsAre(0.0, 0.0))
        << Name(kind);
  }
}

// Ragged groups with everything that may be in them; the last has no signal.
const Batch kRagged{{{1, 0, std::nullopt, 0, 1},
                     {0.25, 2, 0.5},
                     {std::nullopt, -3},
                     {std::nullopt},
                     {0.1, 0.1, 0.1}},
                    {0.5, 0.25, std::nullopt, 1.0, 0.1}};

// Written out per response, with two passes and nothing shared.
double Reference(AdvantageKind kind, const Batch& batch, size_t group, size_t index) {
  const auto scored = [](const Scores& scores) {
    std::vector<double> values;
    for (const std::optional<double>& score : scores) {
      if (score) values.push_back(*score);
    }
    return values;
  };
  const auto mean = [](const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += value;
    return sum / static_cast<double>(values.size());
  };
  const auto variance = [&](const std::vector<double>& values) {
    double squares = 0;
    for (const double value : values) squares += std::pow(value - mean(values), 2);
    return squares / static_cast<double>(values.size() - 1);
  };
  const Scores& scores = batch.scores[group];
  const std::vector<double> own = scored(scores);
  if (!scores[index]) return 0;
  const double score = *scores[index];
  if (kind == AdvantageKind::kGreedyBaseline) {
    return batch.greedy[group] ? score - *batch.greedy[group] : 0;
  }
  if (kind == AdvantageKind::kBatchWhiten) {
    std::vector<double> all;
    for (const Scores& each : batch.scores) {
      for (const double value : scored(each)) all.push_back(value);
    }
    return (score - mean(all)) / std::sqrt(variance(all) + 1e-8);
  }
  if (own.size() < 2) return 0;
  switch (kind) {
    case AdvantageKind::kGroupMean:
      return score - mean(own);
    case AdvantageKind::kGroupMeanStd:
      return (score - mean(own)) / (std::sqrt(variance(own)) + 1e-6);
    case AdvantageKind::kLeaveOneOut: {
      double others = -score;
      for (const double value : own) others += value;
      return score - others / static_cast<double>(own.size() - 1);
    }
    default: {
      std::vector<double> distances;
      for (const Scores& each : batch.scores) {
        const std::vector<double> values = scored(each);
        if (values.size() < 2) continue;
        for (const double value : values) distances.push_back(value - mean(values));
      }
      return (score - mean(own)) / std::sqrt(variance(distances) + 1e-8);
    }
  }
}

TEST(BatchAdvantagesTest, EveryKindFollowsItsFormula) {
  for (const AdvantageKind kind :
       {AdvantageKind::kGroupMean, AdvantageKind::kGroupMeanStd, AdvantageKind::kLeaveOneOut,
        AdvantageKind::kBatchWhiten, AdvantageKind::kGroupMeanBatchWhiten,
        AdvantageKind::kGreedyBaseline}) {
    const std::vector<double> advantages = BatchAdvantages(kind, kRagged.groups());
    size_t at = 0;
    for (size_t group = 0; group < kRagged.scores.size(); ++group) {
      for (size_t i = 0; i < kRagged.scores[group].size(); ++i, ++at) {
        EXPECT_NEAR(advantages[at], Reference(kind, kRagged, group, i), 1e-10)
            << Name(kind) << " group " << group << " response " << i;
      }
    }
    EXPECT_EQ(at, advantages.size());
  }
}

TEST(BatchAdvantagesTest, GroupsOfEqualScoresGetExactZerosAlsoInAWhitenedBatch) {
  for (const AdvantageKind kind : kGroupKinds) {
    const std::vector<double> advantages = BatchAdvantages(kind, kRagged.groups());
    for (size_t i = advantages.size() - 3; i < advantages.size(); ++i) {
      EXPECT_EQ(advantages[i], 0) << Name(kind);
    }
  }
}

TEST(BatchAdvantagesTest, WhiteningComparesGroupsWithEachOther) {
  const Batch batch{{{1, 1}, {0, 0}}, {}};
  const double unit = 0.5 / std::sqrt(1.0 / 3 + 1e-8);
  EXPECT_THAT(BatchAdvantages(AdvantageKind::kBatchWhiten, batch.groups()),
              ElementsAre(DoubleNear(unit, 1e-12), DoubleNear(unit, 1e-12),
                          DoubleNear(-unit, 1e-12), DoubleNear(-unit, 1e-12)));
  EXPECT_THAT(BatchAdvantages(AdvantageKind::kGroupMeanBatchWhiten, batch.groups()), Each(0.0));
}

TEST(BatchAdvantagesTest, WhiteningABatchOfEqualScoresGivesExactZeros) {
  const Batch batch{{{0.1, 0.1}, {0.1}, {std::nullopt, 0.1, 0.1, 0.1}}, {}};
  for (const AdvantageKind kind :
       {AdvantageKind::kBatchWhiten, AdvantageKind::kGroupMeanBatchWhiten}) {
    EXPECT_THAT(BatchAdvantages(kind, batch.groups()), Each(0.0)) << Name(kind);
    EXPECT_THAT(AdvantagesOf(kind, Scores{3.0}), ElementsAre(0.0)) << Name(kind);
    EXPECT_THAT(BatchAdvantages(kind, {}), ElementsAre()) << Name(kind);
  }
}

TEST(BatchAdvantagesTest, GroupKindsLookAtNoOtherGroup) {
  for (const AdvantageKind kind :
       {AdvantageKind::kGroupMean, AdvantageKind::kGroupMeanStd, AdvantageKind::kLeaveOneOut}) {
    const std::vector<double> batch = BatchAdvantages(kind, kRagged.groups());
    const std::vector<double> alone = AdvantagesOf(kind, kRagged.scores[0]);
    EXPECT_EQ(std::vector<double>(batch.begin(), batch.begin() + 5), alone) << Name(kind);
  }
}

TEST(BatchAdvantagesTest, GreedyBaselineNeedsNoSecondSample) {
  const Scores scores{2.0};
  const ScoredGroup group{scores, 0.5};
  EXPECT_THAT(BatchAdvantages(AdvantageKind::kGreedyBaseline, {&group, 1}), ElementsAre(1.5));
  EXPECT_THAT(AdvantagesOf(AdvantageKind::kGreedyBaseline, scores), ElementsAre(0.0));
}

TEST(HasZeroVarianceTest, HoldsForEqualScoresAndForFewerThanTwo) {
  EXPECT_TRUE(HasZeroVariance(Scores{}));
  EXPECT_TRUE(HasZeroVariance(Scores{std::nullopt, std::nullopt}));
  EXPECT_TRUE(HasZeroVariance(Scores{1.0, std::nullopt}));
  EXPECT_TRUE(HasZeroVariance(Scores{0.1, 0.1, std::nullopt, 0.1}));
  EXPECT_FALSE(HasZeroVariance(Scores{0.1, std::nullopt, 0.2}));
}

}  // namespace
}  // namespace halfstep
