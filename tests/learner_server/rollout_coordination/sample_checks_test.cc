// SPDX-License-Identifier: Apache-2.0
// One bad thing at a time.
#include "learner_server/rollout_coordination/sample_checks.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <set>
#include <string>

#include "common/metrics/names.h"
#include "tests/learner_server/rollout_coordination/fake_rollout.h"

namespace halfstep {
namespace {

struct Case {
  const char* name;
  DropReason reason;
  std::function<void(Sample&)> spoil;
};

class SampleChecksTest : public ::testing::TestWithParam<Case> {};

const GroupAssignment kGroup = TinyGroup(Train(0), 7);
constexpr SampleLimits kLimits{8, 6};

TEST(SampleChecksTest, TakesAGoodSample) {
  EXPECT_TRUE(CheckSample(kGroup, kLimits, FakeRollout::GoodSample(kGroup, 1)).ok);
}

TEST(SampleChecksTest, TakesALogProbOfExactlyZero) {
  Sample sample = FakeRollout::GoodSample(kGroup, 0);
  sample.log_probs[0] = 0.0f;
  EXPECT_TRUE(CheckSample(kGroup, kLimits, sample).ok);
}

TEST_P(SampleChecksTest, RefusesABadSample) {
  Sample sample = FakeRollout::GoodSample(kGroup, 1);
  GetParam().spoil(sample);
  const SampleVerdict verdict = CheckSample(kGroup, kLimits, sample);
  EXPECT_FALSE(verdict.ok);
  EXPECT_EQ(verdict.reason, GetParam().reason) << verdict.detail;
}

const float kInf = std::numeric_limits<float>::infinity();

INSTANTIATE_TEST_SUITE_P(
    Spoiled, SampleChecksTest,
    ::testing::Values(
        Case{"Index", DropReason::kIndex, [](Sample& s) { s.index = 2; }},
        Case{"Empty", DropReason::kLength,
             [](Sample& s) { s.tokens = {}, s.log_probs = {}, s.versions = {}; }},
        Case{"TooLong", DropReason::kLength,
             [](Sample& s) {
               s.tokens.assign(5, 1), s.log_probs.assign(5, -1), s.versions = {{7, 5}};
             }},
        Case{"FewerLogProbs", DropReason::kLength, [](Sample& s) { s.log_probs.pop_back(); }},
        Case{"FewerVersions", DropReason::kLength,
             [](Sample& s) {
               s.versions = {{7, 2}};
             }},
        Case{"TokenBeyondVocabulary", DropReason::kToken, [](Sample& s) { s.tokens[2] = 8; }},
        Case{"NegativeToken", DropReason::kToken, [](Sample& s) { s.tokens[0] = -1; }},
        Case{"NanLogProb", DropReason::kLogProb,
             [](Sample& s) { s.log_probs[1] = std::numeric_limits<float>::quiet_NaN(); }},
        Case{"InfiniteLogProb", DropReason::kLogProb, [](Sample& s) { s.log_probs[1] = -kInf; }},
        Case{"PositiveLogProb", DropReason::kLogProb, [](Sample& s) { s.log_probs[1] = 1e-6f; }},
        Case{"OtherVersion", DropReason::kVersion,
             [](Sample& s) {
               s.versions = {{7, 2}, {8, 1}};
             }},
        Case{"Cancelled", DropReason::kCancelled,
             [](Sample& s) { s.finish_reason = FinishReason::kCancelled; }}),
    [](const auto& param_info) { return std::string(param_info.param.name); });

TEST(SampleChecksTest, EveryReasonIsALabelOfTheMetric) {
  const std::set<std::string> labels(std::begin(metric::kDropReasons),
                                     std::end(metric::kDropReasons));
  for (int i = 0; i < kDropReasonCount; ++i) {
    EXPECT_TRUE(labels.contains(Name(static_cast<DropReason>(i))))
        << Name(static_cast<DropReason>(i));
  }
}

}  // namespace
}  // namespace halfstep
