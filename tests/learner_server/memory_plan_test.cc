// SPDX-License-Identifier: Apache-2.0
// What a job will take is known before it takes it, and refused when it is not there.
#include "learner_server/training/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "common/base/error_reason.h"
#include "learner_server/training/job_inputs.h"
#include "learner_server/training/train_state.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;

class MemoryPlanTest : public ::testing::Test {
 protected:
  MemoryPlanTest() {
    settings_ = MakeJobSettings(TinyWorkplace::SupervisedSpec(1), workplace_.root().path()).value();
    inputs_ = LoadJobInputs(settings_).value();
  }

  TinyWorkplace workplace_;
  JobSettings settings_;
  JobInputs inputs_;
};

TEST_F(MemoryPlanTest, IsWhatTheJobThenHolds) {
  const MemoryPlan plan = PlanMemory(settings_, inputs_);
  TrainState state(inputs_.model.config, inputs_.model.layout, settings_.learner_dtype,
                   inputs_.max_sequence_tokens, settings_.loss_scale);
  const ModelGradients gradients(inputs_.model.layout);
  std::map<std::string, size_t> held;
  for (const MemoryUse& use : MemoryReport()) held[use.name] = use.bytes;
  EXPECT_EQ(plan.optimizer, held["master"] + held["first_moment"] + held["second_moment"]);
  EXPECT_EQ(plan.gradients, held["gradients"] + held["tied_embedding_gradient"]);
  EXPECT_EQ(plan.weights, held["weights"] + held["packed_weights"] + held["rope_table"]);
  EXPECT_EQ(plan.published, 0u);  // nobody fetches the weights of a supervised job
}

TEST_F(MemoryPlanTest, AReferencePolicyIsOneMoreSetOfWeights) {
  EXPECT_EQ(PlanMemory(settings_, inputs_).reference, 0u);
  const size_t without = PlanMemory(settings_, inputs_).total();
  inputs_.reference = inputs_.model;
  const MemoryPlan plan = PlanMemory(settings_, inputs_);
  const ModelWeights reference(inputs_.model.config, inputs_.model.layout, settings_.learner_dtype,
                               inputs_.max_sequence_tokens);
  size_t held = 0;
  for (const MemoryUse& use : MemoryReport()) held += use.bytes;
  EXPECT_EQ(plan.reference, held);
  EXPECT_EQ(plan.total(), without + held);
  EXPECT_THAT(std::string(CheckMemory(plan, 1).message()),
              HasSubstr("0.1 MiB for those of the reference policy, 0.0 MiB for published"));
}

TEST_F(MemoryPlanTest, MicroBatchesAreNoLargerThanTheBatchAndNoSmallerThanASequence) {
  inputs_.max_sequence_tokens = 10;  // of 32 rows
  settings_.train_step.micro_batch_tokens = 1000;
  EXPECT_EQ(PlanMemory(settings_, inputs_).micro_batch_tokens, 320);
  settings_.train_step.micro_batch_tokens = 100;
  EXPECT_EQ(PlanMemory(settings_, inputs_).micro_batch_tokens, 100);
  settings_.train_step.micro_batch_tokens = 5;
  EXPECT_EQ(PlanMemory(settings_, inputs_).micro_batch_tokens, 10);
}

TEST_F(MemoryPlanTest, RecomputationSavesActivationsAndLagCostsPublishedWeights) {
  inputs_.model.config.layers = 12;
  const MemoryPlan kept = PlanMemory(settings_, inputs_);
  settings_.train_step.recompute = Recompute::kLayer;
  EXPECT_LT(PlanMemory(settings_, inputs_).activations, kept.activations / 2);
  settings_.supervised = false;
  const size_t without_lag = PlanMemory(settings_, inputs_).published;
  settings_.lag = 3;
  EXPECT_EQ(PlanMemory(settings_, inputs_).published, 2 * without_lag);
}

TEST_F(MemoryPlanTest, PartsThatStayFp32TakeTheirRoom) {
  const size_t plain = PlanMemory(settings_, inputs_).activations;
  settings_.fp32.head = true;
  const size_t head = PlanMemory(settings_, inputs_).activations;
  EXPECT_GT(head, plain);
  settings_.fp32.residual = true;
  EXPECT_GT(PlanMemory(settings_, inputs_).activations, head);
}

TEST(CheckMemoryTest, NamesTheFiguresAndTheWayOut) {
  constexpr size_t kGiB = size_t{1} << 30;
  const MemoryPlan plan = {.optimizer = 12 * kGiB,
                           .gradients = 4 * kGiB,
                           .weights = 5 * kGiB,
                           .published = 2 * kGiB,
                           .activations = 7 * kGiB,
                           .micro_batch_tokens = 16384};
  EXPECT_TRUE(CheckMemory(plan, 30 * kGiB).ok());
  EXPECT_TRUE(CheckMemory(plan, 0).ok());  // not known
  const absl::Status short_of_little = CheckMemory(plan, 24 * kGiB);
  EXPECT_EQ(short_of_little.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(short_of_little), "OUT_OF_MEMORY");
  EXPECT_THAT(std::string(short_of_little.message()),
              HasSubstr("needs about 30.0 GiB for this job, and 24.0 GiB are free: 12.0 GiB for "
                        "master weights and moments, 4.0 GiB for gradients, 5.0 GiB for weights"));
  EXPECT_THAT(std::string(short_of_little.message()),
              HasSubstr("7.0 GiB for micro-batches of 16384 tokens; lower "
                        "batch.micro_batch_tokens, start the learner with --recompute layer"));
  EXPECT_THAT(std::string(CheckMemory(plan, 20 * kGiB).message()),
              HasSubstr("take a smaller model or a larger machine"));
}

TEST_F(MemoryPlanTest, AJobThatDoesNotFitIsRefusedWhenItIsCheckedAndWhenItStarts) {
  TrainingJobRunnerOptions options;
  options.root = workplace_.root().path();
  options.free_memory = [] { return size_t{100'000}; };
  TrainingJobRunner runner(options, nullptr, nullptr);
  RecordingControl control;
  v1::RunSummary summary;
  const v1::TrainingJobSpec spec = TinyWorkplace::SupervisedSpec(1);
  for (const absl::Status& status :
       {runner.Check(spec), runner.Run("job", 1, spec, &control, &summary).status()}) {
    EXPECT_EQ(ReasonOf(status), "OUT_OF_MEMORY");
    EXPECT_THAT(std::string(status.message()), HasSubstr("0.1 MiB are free"));
  }
  EXPECT_FALSE(std::filesystem::exists(workplace_.root() / "sft"));
}

}  // namespace
}  // namespace halfstep
