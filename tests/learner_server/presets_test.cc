// SPDX-License-Identifier: Apache-2.0
// The rows of the presets, how they read their log-probs, and what they say of themselves.
#include "learner_server/algorithm/presets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_join.h"
#include "learner_server/algorithm/explain.h"

namespace halfstep {
namespace {

using testing::AllOf;
using testing::HasSubstr;

struct Row {
  const char* name;
  AdvantageKind advantage;
  Objective objective;
  double low, high;
  CorrectionKind correction;
  Aggregation aggregation;
  OldLogProbs old_log_probs;
};

constexpr Row kRows[] = {
    {"reinforce", AdvantageKind::kGroupMean, Objective::kPolicyGradient, 0.2, 0.2,
     CorrectionKind::kNone, Aggregation::kSequenceMeanTokenSumNorm, OldLogProbs::kBehaviour},
    {"grpo", AdvantageKind::kGroupMeanStd, Objective::kPpoClip, 0.2, 0.2, CorrectionKind::kNone,
     Aggregation::kSequenceMeanTokenMean, OldLogProbs::kBehaviour},
    {"dr_grpo", AdvantageKind::kGroupMean, Objective::kPpoClip, 0.2, 0.28, CorrectionKind::kNone,
     Aggregation::kSequenceMeanTokenSumNorm, OldLogProbs::kBehaviour},
    {"grpo_token_tis", AdvantageKind::kGroupMean, Objective::kPpoClip, 0.2, 0.28,
     CorrectionKind::kTokenTis, Aggregation::kSequenceMeanTokenSumNorm, OldLogProbs::kRecompute},
    {"grpo_seq_mis", AdvantageKind::kGroupMean, Objective::kPpoClip, 0.2, 0.28,
     CorrectionKind::kSequenceMis, Aggregation::kSequenceMeanTokenSumNorm, OldLogProbs::kRecompute},
    {"gspo", AdvantageKind::kGroupMeanStd, Objective::kGspo, 3e-4, 4e-4, CorrectionKind::kNone,
     Aggregation::kSequenceMeanTokenMean, OldLogProbs::kBehaviour},
    {"pg_seq_is", AdvantageKind::kGroupMean, Objective::kPolicyGradient, 0.2, 0.2,
     CorrectionKind::kSequenceIs, Aggregation::kSequenceMeanTokenSumNorm, OldLogProbs::kBehaviour},
    {"pg_seq_tis", AdvantageKind::kGroupMean, Objective::kPolicyGradient, 0.2, 0.2,
     CorrectionKind::kSequenceTis, Aggregation::kSequenceMeanTokenSumNorm, OldLogProbs::kBehaviour},
    {"pg_seq_mis", AdvantageKind::kGroupMean, Objective::kPolicyGradient, 0.2, 0.2,
     CorrectionKind::kSequenceMis, Aggregation::kSequenceMeanTokenSumNorm, OldLogProbs::kBehaviour},
    {"dapo", AdvantageKind::kGroupMeanStd, Objective::kPpoClip, 0.2, 0.28, CorrectionKind::kNone,
     Aggregation::kTokenMean, OldLogProbs::kBehaviour},
    {"cispo", AdvantageKind::kGroupMeanStd, Objective::kCispo, 1, 4, CorrectionKind::kNone,
     Aggregation::kTokenMean, OldLogProbs::kBehaviour},
    {"rloo", AdvantageKind::kLeaveOneOut, Objective::kPolicyGradient, 0.2, 0.2,
     CorrectionKind::kNone, Aggregation::kSequenceMeanTokenSum, OldLogProbs::kBehaviour},
    {"reinforce_pp", AdvantageKind::kBatchWhiten, Objective::kPpoClip, 0.2, 0.2,
     CorrectionKind::kNone, Aggregation::kTokenMean, OldLogProbs::kBehaviour},
    {"icepop", AdvantageKind::kGroupMeanStd, Objective::kPpoClip, 0.2, 0.2, CorrectionKind::kIcePop,
     Aggregation::kSequenceMeanTokenMean, OldLogProbs::kRecompute},
    {"decoupled_ppo", AdvantageKind::kGroupMeanStd, Objective::kPpoClip, 0.2, 0.2,
     CorrectionKind::kTokenIs, Aggregation::kTokenMean, OldLogProbs::kDecoupled},
};

TEST(AlgorithmPresetTest, RowsAreAsDocumented) {
  ASSERT_EQ(AlgorithmPresets().size(), std::size(kRows));
  for (const Row& row : kRows) {
    const Algorithm* preset = FindAlgorithmPreset(row.name);
    ASSERT_NE(preset, nullptr) << row.name;
    EXPECT_EQ(preset->advantage, row.advantage) << row.name;
    EXPECT_EQ(preset->loss.objective, row.objective) << row.name;
    EXPECT_DOUBLE_EQ(preset->loss.clip_low, row.low) << row.name;
    EXPECT_DOUBLE_EQ(preset->loss.clip_high, row.high) << row.name;
    EXPECT_EQ(preset->correction.kind, row.correction) << row.name;
    EXPECT_FALSE(preset->correction.normalize) << row.name;
    EXPECT_EQ(preset->aggregation, row.aggregation) << row.name;
    EXPECT_EQ(preset->old_log_probs, row.old_log_probs) << row.name;
    EXPECT_EQ(preset->regularizers.kl.coefficient, 0) << row.name;
    const bool dapo = row.name == std::string("dapo");
    EXPECT_EQ(preset->regularizers.overlong.enabled, dapo) << row.name;
    EXPECT_EQ(preset->regularizers.zero_variance,
              dapo ? ZeroVarianceGroups::kResample : ZeroVarianceGroups::kKeep)
        << row.name;
    EXPECT_EQ(preset->loss.dual_clip, dapo ? 10 : 0) << row.name;
  }
  EXPECT_EQ(FindAlgorithmPreset("grpo_token_tis")->correction.cap, 2);
  EXPECT_EQ(FindAlgorithmPreset("grpo_seq_mis")->correction.cap, 3);
  EXPECT_EQ(FindAlgorithmPreset("pg_seq_tis")->correction.cap, 3);
  EXPECT_EQ(FindAlgorithmPreset("dr-grpo"), nullptr);
}

TEST(AlgorithmTest, NoRatioIsCountedTwice) {
  Algorithm algorithm;
  for (const Objective objective : {Objective::kPolicyGradient, Objective::kPpoClip}) {
    for (const OldLogProbs old_log_probs :
         {OldLogProbs::kBehaviour, OldLogProbs::kRecompute, OldLogProbs::kDecoupled}) {
      algorithm.loss.objective = objective;
      algorithm.old_log_probs = old_log_probs;
      algorithm.correction.kind = CorrectionKind::kNone;
      EXPECT_EQ(CorrectionNumerator(algorithm), PolicySource::kNone);
      algorithm.correction.kind = CorrectionKind::kSequenceIs;
      if (objective == Objective::kPolicyGradient) {
        // All of the way from mu to pi is in the weight.
        EXPECT_EQ(RatioDenominator(algorithm), PolicySource::kNone);
        EXPECT_EQ(CorrectionNumerator(algorithm), PolicySource::kCurrent);
      } else if (old_log_probs == OldLogProbs::kBehaviour) {
        // All of it is in the ratio.
        EXPECT_EQ(RatioDenominator(algorithm), PolicySource::kBehaviour);
        EXPECT_EQ(CorrectionNumerator(algorithm), PolicySource::kNone);
      } else {
        // One part is in each.
        EXPECT_EQ(RatioDenominator(algorithm), PolicySource::kOld);
        EXPECT_EQ(CorrectionNumerator(algorithm), PolicySource::kOld);
      }
    }
  }
}

TEST(AlgorithmTest, KnowsWhatTrainsWithoutAdvantage) {
  for (const Algorithm& preset : AlgorithmPresets()) {
    EXPECT_FALSE(TrainsOnZeroAdvantage(preset)) << preset.name;
  }
  Algorithm algorithm;
  algorithm.loss.objective = Objective::kDro;
  EXPECT_TRUE(TrainsOnZeroAdvantage(algorithm));
  algorithm.loss.objective = Objective::kPpoClip;
  algorithm.regularizers.kl.coefficient = 0.1;
  EXPECT_TRUE(TrainsOnZeroAdvantage(algorithm));
  algorithm.regularizers.kl.place = KlPlace::kReward;
  EXPECT_FALSE(TrainsOnZeroAdvantage(algorithm));
  algorithm.regularizers.entropy_coefficient = 0.01;
  EXPECT_TRUE(TrainsOnZeroAdvantage(algorithm));
}

std::string Explained(const Algorithm& algorithm) {
  return absl::StrJoin(Explain(algorithm), "\n");
}

TEST(ExplainTest, GivesEveryChoiceWithItsNumbers) {
  EXPECT_EQ(Explained(*FindAlgorithmPreset("grpo_token_tis")),
            R"(preset         grpo_token_tis
advantage      group_mean: A = R - mean of the group
old_log_probs  recompute: r = pi / pi_old, pi_old from one more forward
objective      ppo_clip: l = -min(r A, clip(r, 1 - 0.2, 1 + 0.28) A)
correction     token_tis: w = min(e^d, 2), d = log pi_old - log mu
aggregation    sequence_mean_token_sum_norm: L = mean over responses of (sum of w l / N), N = max_new_tokens unless given
regularizers   none)");
  EXPECT_EQ(Explained(*FindAlgorithmPreset("pg_seq_mis")),
            R"(preset         pg_seq_mis
advantage      group_mean: A = R - mean of the group
old_log_probs  behaviour: no ratio, no second forward
objective      policy_gradient: l = -A log pi
correction     sequence_mis: w = e^(sum of d) where at most 3, else 0, d = stop(log pi) - log mu
aggregation    sequence_mean_token_sum_norm: L = mean over responses of (sum of w l / N), N = max_new_tokens unless given
regularizers   none)");
}

TEST(ExplainTest, SaysWhatDapoAdds) {
  EXPECT_THAT(Explained(*FindAlgorithmPreset("dapo")),
              AllOf(HasSubstr("at most -10 A where A < 0"),
                    HasSubstr("over the last max_new_tokens / 5 tokens before max_new_tokens"),
                    HasSubstr("groups of equal scores: resample")));
}

TEST(ExplainTest, SaysTheConstantThatIsGiven) {
  Algorithm algorithm = *FindAlgorithmPreset("dr_grpo");
  EXPECT_THAT(Explained(algorithm), HasSubstr("N = max_new_tokens unless given"));
  algorithm.constant_length = 512;
  EXPECT_THAT(Explained(algorithm), HasSubstr("N = 512"));
}

TEST(ExplainTest, SaysWhatKlDoes) {
  Algorithm algorithm;
  algorithm.regularizers.kl = {KlEstimator::kK1, KlPlace::kLoss, 0.05};
  EXPECT_THAT(Explained(algorithm),
              HasSubstr("0.05 KL to the reference by k1 in the loss (expected gradient 0)"));
}

TEST(ExplainTest, HasAFormulaForEveryValue) {
  Algorithm algorithm;
  const auto expect_known = [&] {
    EXPECT_THAT(Explained(algorithm), testing::Not(HasSubstr("?")));
  };
  for (int i = 0; i <= static_cast<int>(Objective::kDro); ++i) {
    algorithm.loss = DefaultOptions(static_cast<Objective>(i));
    expect_known();
  }
  for (int i = 0; i <= static_cast<int>(AdvantageKind::kGreedyBaseline); ++i) {
    algorithm.advantage = static_cast<AdvantageKind>(i);
    expect_known();
  }
  for (int i = 0; i <= static_cast<int>(CorrectionKind::kVeto); ++i) {
    algorithm.correction = DefaultCorrection(static_cast<CorrectionKind>(i));
    for (const OldLogProbs old_log_probs : {OldLogProbs::kBehaviour, OldLogProbs::kRecompute}) {
      algorithm.old_log_probs = old_log_probs;
      expect_known();
    }
  }
  for (int i = 0; i <= static_cast<int>(Aggregation::kSequenceMeanTokenSumNorm); ++i) {
    algorithm.aggregation = static_cast<Aggregation>(i);
    expect_known();
  }
}

}  // namespace
}  // namespace halfstep
