// SPDX-License-Identifier: Apache-2.0
// Whole runs with a fault for each alarm of the health monitor: it is raised within 50 steps.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

using ::testing::Contains;
using ::testing::IsEmpty;

constexpr int64_t kSteps = 50;

class HealthFaultsTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    workplace_ = new TinyWorkplace();
    TinyLearner learner(root(), nullptr);
    ASSERT_TRUE(learner.Run("sft", TinyWorkplace::SupervisedSpec(40)).ok());
  }
  static void TearDownTestSuite() { delete workplace_; }

  static const std::string& root() { return workplace_->root().path(); }

  // The reasons of all notices of the run.
  std::vector<std::string> Notices(const v1::TrainingJobSpec& spec) {
    TinyLearner learner(root(), &pool_);
    const auto result = learner.Run(spec.output_dir(), spec);
    EXPECT_TRUE(result.ok()) << result.status();
    return learner.control().notices();
  }

  // With answers of which every `period`-th is `odd_one`, the others `answer`.
  static v1::TrainingJobSpec SpecWithAnswers(const std::string& output, const std::string& answer,
                                             int period, const std::string& odd_one) {
    std::string rows;
    for (int i = 0; i < 64; ++i) {
      absl::StrAppend(&rows, "{\"prompt\":\"", i % 10, "+", i / 10, "=\",\"answer\":\"",
                      i % period == 0 ? odd_one : answer, "\"}\n");
    }
    WriteText(absl::StrCat(root(), "/", output, ".jsonl"), rows);
    v1::TrainingJobSpec spec = TinyWorkplace::RlSpec(output, kSteps);
    spec.mutable_data()->set_train(output + ".jsonl");
    return spec;
  }

  static TinyWorkplace* workplace_;
  LocalRolloutPool pool_;
};

TinyWorkplace* HealthFaultsTest::workplace_ = nullptr;

TEST_F(HealthFaultsTest, AHealthyRunRaisesNothing) {
  // As fast as it learns without having learnt everything, after which nothing is left to reward.
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("healthy", kSteps);
  spec.mutable_optimizer()->set_learning_rate(1e-4);
  for (const uint64_t seed : {1, 2, 3}) {
    spec.set_seed(seed);
    spec.set_output_dir(absl::StrCat("healthy_", seed));
    EXPECT_THAT(Notices(spec), IsEmpty()) << seed;
  }
}

TEST_F(HealthFaultsTest, RewardsThatNothingCanEarn) {
  EXPECT_THAT(Notices(SpecWithAnswers("hopeless", "never", 2, "never")),
              Contains("CONSTANT_REWARD"));
}

TEST_F(HealthFaultsTest, ALearningRateThatFreezesThePolicy) {
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("frozen", kSteps);
  spec.mutable_optimizer()->set_learning_rate(0.03);
  EXPECT_THAT(Notices(spec), Contains("ENTROPY_COLLAPSE"));
}

TEST_F(HealthFaultsTest, BehaviourLogProbsThatAreOff) {
  pool_.ShiftLogProbs(-3, 20);
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("shifted", kSteps);
  spec.mutable_optimizer()->set_learning_rate(1e-4);
  const std::vector<std::string> notices = Notices(spec);
  EXPECT_THAT(notices, Contains("MISMATCH_JUMP"));
  // What is less likely to have been sampled is believed to have become e^3 times likelier.
  EXPECT_THAT(notices, Contains("GRADIENT_NORM_JUMP"));
}

TEST_F(HealthFaultsTest, AnswersThatNothingCanBeScoredAgainst) {
  v1::TrainingJobSpec spec = SpecWithAnswers("unscorable", "1", 7, "one");
  spec.mutable_reward()->set_type(v1::REWARD_TYPE_NUMERIC);
  spec.set_steps(12);  // further on a batch has so many of them that the job ends
  EXPECT_THAT(Notices(spec), Contains("UNSCORABLE_SHARE"));
}

}  // namespace
}  // namespace halfstep
