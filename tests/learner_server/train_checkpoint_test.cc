// SPDX-License-Identifier: Apache-2.0
// Checkpoints: everything comes back, and a disk that is full costs only the new one.
#include "learner_server/training/train_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <optional>

#include "common/base/error_reason.h"
#include "common/checkpoint/hugging_face.h"
#include "common/model/initialize.h"
#include "kernels/workspace.h"
#include "tests/learner_server/tiny_job.h"
#include "tests/testing/full_disk.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;

class TrainCheckpointTest : public testing::Test {
 protected:
  TrainCheckpointTest() {
    WriteModelFolder(dir_ / "model");
    ctx_.workspace = &workspace_;
    model_ = *OpenHuggingFaceModel(dir_ / "model");
    state_ = MakeState();
    InitializeParameters(model_.config, 5, &state_->master);
    InitializeParameters(model_.config, 6, &state_->first_moment);
    InitializeParameters(model_.config, 7, &state_->second_moment);
    state_->RefreshWeights(ctx_);
    state_->optimizer_steps = 17;
    EXPECT_TRUE(state_->scaler.Update(false).ok());
    EXPECT_TRUE(state_->scaler.Update(true).ok());
    progress_.step = 2;
    progress_.policy_version = 1;
    progress_.version_after = {0, 1, 1};
    progress_.cursor = 16;
    progress_.samples_admitted = progress_.samples_trained = 64;
    progress_.samples_dropped["unscored"] = 3;
    progress_.max_abs_logprob_diff = 1.0 / 3;
    progress_.base_accuracy = 0.1;
    store_ = std::make_unique<CheckpointStore>(*CheckpointStore::Open(dir_ / "checkpoints", "t"));
  }

  std::unique_ptr<TrainState> MakeState() const {
    return std::make_unique<TrainState>(model_.config, model_.layout, DType::kFloat16, 32,
                                        LossScaleOptions{});
  }
  CheckpointContents Contents() const {
    CheckpointContents contents;
    contents.state = state_.get();
    contents.progress = &progress_;
    contents.job_json = "{}";
    contents.model.directory = dir_ / "model";
    return contents;
  }

  TempDir dir_;
  Workspace workspace_;
  ExecContext ctx_;
  HuggingFaceModel model_;
  std::unique_ptr<TrainState> state_;
  RunProgress progress_;
  std::unique_ptr<CheckpointStore> store_;
};

TEST_F(TrainCheckpointTest, EverythingComesBack) {
  CheckpointContents contents = Contents();
  const auto older =
      WeightSet::Create(0, state_->second_moment, DType::kFloat16, state_->weights.rope_table());
  contents.older_weights = {older};
  ASSERT_TRUE(WriteCheckpoint(*store_, contents).ok());
  const std::string path = store_->FindNewest()->path;
  const auto restored = MakeState();
  const auto progress = ReadCheckpoint(ctx_, path, {}, restored.get());
  ASSERT_TRUE(progress.ok()) << progress.status();
  EXPECT_EQ(*progress, progress_);
  EXPECT_EQ(restored->scaler.state(), state_->scaler.state());
  EXPECT_EQ(StateDigest(*restored, *progress), StateDigest(*state_, progress_));
  const ConstTensor weights = state_->weights.parameters().flat();
  EXPECT_EQ(
      std::memcmp(restored->weights.parameters().flat().data(), weights.data(), weights.bytes()),
      0);
  const auto sets = ReadOlderWeights(path, *restored, DType::kFloat16);
  ASSERT_TRUE(sets.ok()) << sets.status();
  ASSERT_EQ(sets->size(), 1u);
  EXPECT_EQ((*sets)[0]->manifest().identity(), older->manifest().identity());
  // The model is there as a folder of its own.
  const auto model = OpenHuggingFaceModel(path + "/model");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE(model->has_weights);
}

TEST_F(TrainCheckpointTest, DigestCoversStateButNotFactsOfTheRun) {
  const std::string digest = StateDigest(*state_, progress_);
  RunProgress other = progress_;
  other.train_seconds = 12;
  other.samples_by_rollout["a"] = 64;
  other.groups_reassigned = 9;
  EXPECT_EQ(StateDigest(*state_, other), digest);
  other.tokens_trained = 1;
  EXPECT_NE(StateDigest(*state_, other), digest);
  state_->second_moment.flat().as<float>()[0] += 1;
  EXPECT_NE(StateDigest(*state_, progress_), digest);
}

TEST_F(TrainCheckpointTest, KeepsTwo) {
  for (int step = 1; step <= 4; ++step) {
    progress_.step = step;
    progress_.version_after.assign(step + 1, 0);
    ASSERT_TRUE(WriteCheckpoint(*store_, Contents()).ok());
  }
  EXPECT_THAT(*store_->Steps(), testing::ElementsAre(4, 3));
}

TEST_F(TrainCheckpointTest, RefusesAnotherModelsState) {
  ASSERT_TRUE(WriteCheckpoint(*store_, Contents()).ok());
  ModelConfig wider = model_.config;
  wider.intermediate_size *= 2;
  TrainState other(wider, std::make_shared<const ParameterLayout>(wider), DType::kFloat16, 32, {});
  const auto progress = ReadCheckpoint(ctx_, store_->FindNewest()->path, {}, &other);
  EXPECT_EQ(progress.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(ReasonOf(progress.status()), "CHECKPOINT_MISMATCH");
}

TEST_F(TrainCheckpointTest, FullDiskLeavesTheCheckpointBefore) {
  ASSERT_TRUE(WriteCheckpoint(*store_, Contents()).ok());
  progress_.step = 3;
  progress_.version_after.push_back(1);
  {
    const FullDisk disk(/*room=*/16384);
    const absl::Status status = WriteCheckpoint(*store_, Contents());
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(ReasonOf(status), "DISK_FULL");
    EXPECT_THAT(std::string(status.message()), HasSubstr("step_3"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("No space left on device"));
  }
  EXPECT_EQ(store_->FindNewest()->step, 2);
  EXPECT_TRUE(WriteCheckpoint(*store_, Contents()).ok());
  EXPECT_EQ(store_->FindNewest()->step, 3);
}

TEST(TrainerCheckpointTest, TrainingGoesOnWhileTheDiskIsFullAndTheJobThenWaitsForRoom) {
  TinyWorkplace workplace;
  const std::string& root = workplace.root().path();
  v1::TrainingJobSpec spec = TinyWorkplace::SupervisedSpec(6);
  spec.mutable_checkpoint()->set_every_steps(2);
  spec.set_output_dir("roomy");
  TinyLearner roomy(root, nullptr);
  ASSERT_TRUE(roomy.Run("roomy", spec).ok());

  spec.set_output_dir("full");
  TinyLearner learner(root, nullptr);
  std::optional<FullDisk> disk;
  learner.control().OnStep([&disk](int64_t step) {
    if (step == 3) disk.emplace(/*room=*/16384);
  });
  const auto result = learner.Run("full", spec);
  // Every step was trained, and what could not be kept in the end is the model itself.
  EXPECT_EQ(learner.control().step(), 6);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->outcome, RunOutcome::kPaused);
  EXPECT_EQ(result->reason, "DISK_FULL");
  EXPECT_THAT(result->message, HasSubstr("No space left on device; make room and resume the job"));
  int said = 0;
  for (const v1::TrainingJobEvent& event : learner.control().events()) {
    if (event.notice().reason() != "CHECKPOINT_FAILED") continue;
    ++said;
    EXPECT_THAT(event.notice().message(), HasSubstr("No space left on device; training goes on"));
    EXPECT_THAT(event.notice().message(), HasSubstr("the last one is " + root));
    EXPECT_THAT(event.notice().message(), HasSubstr("full/checkpoints/step_2"));
  }
  EXPECT_EQ(said, 3);  // after step 4, after the last, and once more for the pause
  EXPECT_EQ(learner.metrics().checkpoint_failures.Value(), said);
  EXPECT_THAT(learner.Scrape(), HasSubstr("halfstep_learner_checkpoint_failures_total 3"));
  EXPECT_THAT(learner.summary().checkpoint(), HasSubstr("full/checkpoints/step_2"));
  EXPECT_TRUE(VerifyDirectory(root + "/full/checkpoints/step_2").ok());

  // A learner that is started again meanwhile loses nothing either.
  disk.reset();
  disk.emplace(/*room=*/0);
  TinyLearner early(root, nullptr);
  const auto too_early = early.Run("full", spec);
  ASSERT_TRUE(too_early.ok()) << too_early.status();
  EXPECT_EQ(too_early->outcome, RunOutcome::kPaused);
  EXPECT_EQ(too_early->reason, "DISK_FULL");

  disk.reset();
  TinyLearner again(root, nullptr);
  const auto resumed = again.Run("full", spec);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_EQ(resumed->outcome, RunOutcome::kSucceeded);
  EXPECT_EQ(again.summary().state_digest(), roomy.summary().state_digest());
  EXPECT_EQ(ReadLines(root + "/full/metrics.jsonl").size(), 6u);
}

}  // namespace
}  // namespace halfstep
