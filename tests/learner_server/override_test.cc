// SPDX-License-Identifier: Apache-2.0
// Single choices and numbers in place of a preset's.
#include "learner_server/algorithm/override.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace halfstep {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

auto Violation(const std::string& field, const std::string& description) {
  return AllOf(Field(&FieldViolation::field, field),
               Field(&FieldViolation::description,
                     AllOf(HasSubstr("'" + field + "' "), HasSubstr(description))));
}

std::vector<FieldViolation> Apply(const std::string& preset, const AlgorithmOverrides& overrides,
                                  Algorithm* algorithm) {
  *algorithm = *FindAlgorithmPreset(preset);
  return ApplyOverrides(overrides, algorithm);
}

std::vector<FieldViolation> Violations(const std::string& preset,
                                       const AlgorithmOverrides& overrides) {
  Algorithm algorithm;
  return Apply(preset, overrides, &algorithm);
}

TEST(ApplyOverridesTest, EveryChoiceReplacesThePresets) {
  Algorithm algorithm;
  EXPECT_THAT(Apply("grpo",
                    {.choices = {{"advantage", "leave_one_out"},
                                 {"objective", "gspo"},
                                 {"correction", "icepop"},
                                 {"aggregation", "token_mean"},
                                 {"old_log_probs", "recompute"},
                                 {"zero_variance", "drop"},
                                 {"kl_estimator", "k1"},
                                 {"kl_place", "reward"}},
                     .parameters = {{"kl", 0.1}}},
                    &algorithm),
              IsEmpty());
  EXPECT_EQ(algorithm.advantage, AdvantageKind::kLeaveOneOut);
  EXPECT_EQ(algorithm.loss.objective, Objective::kGspo);
  EXPECT_EQ(algorithm.loss.clip_high, 4e-4) << "an objective comes with its own bounds";
  EXPECT_EQ(algorithm.correction.kind, CorrectionKind::kIcePop);
  EXPECT_EQ(algorithm.correction.high, 5);
  EXPECT_EQ(algorithm.aggregation, Aggregation::kTokenMean);
  EXPECT_EQ(algorithm.old_log_probs, OldLogProbs::kRecompute);
  EXPECT_EQ(algorithm.regularizers.zero_variance, ZeroVarianceGroups::kDrop);
  EXPECT_EQ(algorithm.regularizers.kl.estimator, KlEstimator::kK1);
  EXPECT_EQ(algorithm.regularizers.kl.place, KlPlace::kReward);
  EXPECT_EQ(algorithm.regularizers.kl.coefficient, 0.1);
}

TEST(ApplyOverridesTest, TheObjectiveOfThePresetKeepsItsNumbers) {
  Algorithm algorithm;
  EXPECT_THAT(Apply("dapo", {.choices = {{"objective", "ppo_clip"}}}, &algorithm), IsEmpty());
  EXPECT_EQ(algorithm.loss.dual_clip, 10);
  EXPECT_THAT(Apply("grpo_seq_mis", {.choices = {{"correction", "sequence_mis"}}}, &algorithm),
              IsEmpty());
  EXPECT_EQ(algorithm.correction.cap, 3);
}

TEST(ApplyOverridesTest, EveryParameterIsReadByARowThatHasIt) {
  Algorithm a;
  EXPECT_THAT(Apply("grpo", {.parameters = {{"dual_clip", 3}}, .clip = {0.1, 0.3}}, &a), IsEmpty());
  EXPECT_EQ(a.loss.dual_clip, 3);
  EXPECT_EQ(a.loss.clip_low, 0.1);
  EXPECT_EQ(a.loss.clip_high, 0.3);
  EXPECT_THAT(Apply("grpo",
                    {.choices = {{"objective", "sapo"}},
                     .parameters = {{"tau_positive", 2}, {"tau_negative", 3}}},
                    &a),
              IsEmpty());
  EXPECT_EQ(a.loss.tau_positive, 2);
  EXPECT_EQ(a.loss.tau_negative, 3);
  EXPECT_THAT(
      Apply("grpo", {.choices = {{"objective", "dppo_tv"}}, .parameters = {{"delta", 0.3}}}, &a),
      IsEmpty());
  EXPECT_EQ(a.loss.delta, 0.3);
  EXPECT_THAT(Apply("grpo", {.choices = {{"objective", "dro"}}, .parameters = {{"beta", 7}}}, &a),
              IsEmpty());
  EXPECT_EQ(a.loss.beta, 7);
  EXPECT_THAT(Apply("pg_seq_tis", {.parameters = {{"correction_cap", 9}}}, &a), IsEmpty());
  EXPECT_EQ(a.correction.cap, 9);
  EXPECT_THAT(Apply("icepop",
                    {.parameters = {{"correction_low", 0.25},
                                    {"correction_high", 4},
                                    {"correction_normalize", 1}}},
                    &a),
              IsEmpty());
  EXPECT_EQ(a.correction.low, 0.25);
  EXPECT_EQ(a.correction.high, 4);
  EXPECT_TRUE(a.correction.normalize);
  EXPECT_THAT(
      Apply("icepop",
            {.choices = {{"correction", "k3_mask"}}, .parameters = {{"correction_k3_limit", 0.5}}},
            &a),
      IsEmpty());
  EXPECT_EQ(a.correction.k3_limit, 0.5);
  EXPECT_THAT(
      Apply("icepop",
            {.choices = {{"correction", "veto"}}, .parameters = {{"correction_min_ratio", 0.01}}},
            &a),
      IsEmpty());
  EXPECT_EQ(a.correction.min_ratio, 0.01);
  EXPECT_THAT(Apply("dr_grpo", {.parameters = {{"constant_length", 512}, {"entropy", 0.01}}}, &a),
              IsEmpty());
  EXPECT_EQ(a.constant_length, 512);
  EXPECT_EQ(a.regularizers.entropy_coefficient, 0.01);
}

TEST(ApplyOverridesTest, OverlongShapingCanBeSwitchedOnAndOff) {
  Algorithm algorithm;
  EXPECT_THAT(
      Apply("grpo", {.parameters = {{"overlong_length", 100}, {"overlong_cache", 30}}}, &algorithm),
      IsEmpty());
  EXPECT_TRUE(algorithm.regularizers.overlong.enabled);
  EXPECT_EQ(algorithm.regularizers.overlong.max_length, 100);
  EXPECT_EQ(algorithm.regularizers.overlong.cache, 30);
  EXPECT_THAT(Apply("dapo", {.parameters = {{"overlong_length", 0}}}, &algorithm), IsEmpty());
  EXPECT_FALSE(algorithm.regularizers.overlong.enabled);
  EXPECT_THAT(Violations("dapo", {.parameters = {{"overlong_length", 0}, {"overlong_cache", 3}}}),
              ElementsAre(Violation("algorithm.parameters.overlong_cache", "is not read")));
}

TEST(ApplyOverridesTest, UnknownNamesAndValuesSayWhatIsAccepted) {
  EXPECT_THAT(Violations("grpo", {.choices = {{"advantige", "group_mean"}}}),
              ElementsAre(Violation("algorithm.choices.advantige",
                                    "is no choice; there are advantage, objective, correction, "
                                    "aggregation, old_log_probs, zero_variance, kl_estimator, "
                                    "kl_place; did you mean 'advantage'?")));
  EXPECT_THAT(Violations("grpo", {.choices = {{"advantage", "grop_mean"}}}),
              ElementsAre(Violation("algorithm.choices.advantage",
                                    "is 'grop_mean'; accepted are group_mean, group_mean_std, "
                                    "leave_one_out, batch_whiten, group_mean_batch_whiten, "
                                    "greedy_baseline; did you mean 'group_mean'?")));
  EXPECT_THAT(Violations("grpo", {.parameters = {{"entrpy", 0.1}}}),
              ElementsAre(Violation("algorithm.parameters.entrpy", "did you mean 'entropy'?")));
}

TEST(ApplyOverridesTest, WhatTheRowDoesNotReadIsRefused) {
  const auto unread = [](const std::string& preset, const std::string& name,
                         const std::string& reader) {
    EXPECT_THAT(Violations(preset, {.parameters = {{name, 1}}}),
                ElementsAre(Violation("algorithm.parameters." + name,
                                      "is not read by this row; remove it, or take " + reader)));
  };
  unread("reinforce", "dual_clip", "objective ppo_clip");
  unread("grpo", "tau_positive", "objective sapo");
  unread("grpo", "tau_negative", "objective sapo");
  unread("grpo", "delta", "objective dppo_tv");
  unread("grpo", "beta", "objective dro");
  unread("pg_seq_is", "correction_cap", "correction token_tis");
  unread("grpo", "correction_low", "correction icepop");
  unread("grpo", "correction_high", "correction icepop");
  unread("grpo", "correction_k3_limit", "correction k3_mask");
  unread("grpo", "correction_min_ratio", "correction veto");
  unread("grpo", "correction_normalize", "a correction");
  unread("grpo", "overlong_cache", "overlong shaping");
  unread("grpo", "constant_length", "aggregation sequence_mean_token_sum_norm");
  EXPECT_THAT(Violations("rloo", {.clip = {0.2, 0.2}}),
              ElementsAre(Violation("algorithm.clip", "objective policy_gradient has no clip")));
  EXPECT_THAT(Violations("grpo", {.choices = {{"kl_place", "loss"}}, .reference = true}),
              ElementsAre(Violation("algorithm.choices.kl_place", "is not read without KL"),
                          Violation("algorithm.reference", "is not read without KL")));
}

TEST(ApplyOverridesTest, LengthsAreWholeNumbers) {
  for (const double value : {-1.0, 0.5, 1e12, std::nan("")}) {
    EXPECT_THAT(Violations("dr_grpo", {.parameters = {{"constant_length", value}}}),
                ElementsAre(Violation("algorithm.parameters.constant_length",
                                      "accepted are whole numbers from 0 to")))
        << value;
  }
}

}  // namespace
}  // namespace halfstep
