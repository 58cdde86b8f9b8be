// SPDX-License-Identifier: Apache-2.0
// Checkpoints: everything comes back, and a disk that is full costs only the new one.
#include "learner_server/training/train_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "common/base/error_reason.h"
#include "common/checkpoint/hugging_face.h"
#include "common/model/initialize.h"
#include "kernels/workspace.h"
#include "tests/learner_server/tiny_job.h"
#include "tests/testing/file_size_limit.h"

namespace halfstep {
namespace {

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
    FileSizeLimit limit(16384);
    EXPECT_FALSE(WriteCheckpoint(*store_, Contents()).ok());
  }
  EXPECT_EQ(store_->FindNewest()->step, 2);
  EXPECT_TRUE(WriteCheckpoint(*store_, Contents()).ok());
  EXPECT_EQ(store_->FindNewest()->step, 3);
}

TEST(TrainerCheckpointTest, TrainingGoesOnWithoutRoomForCheckpoints) {
  TinyWorkplace workplace;
  v1::TrainingJobSpec spec = TinyWorkplace::SupervisedSpec(6);
  spec.mutable_checkpoint()->set_every_steps(2);
  TinyLearner learner(workplace.root().path(), nullptr);
  const auto result = [&] {
    FileSizeLimit limit(16384);
    return learner.Run("sft", spec);
  }();
  // Every step was trained; what could not be kept in the end is the model itself.
  EXPECT_FALSE(result.ok());
  EXPECT_EQ(learner.control().step(), 6);
  EXPECT_THAT(learner.control().notices(),
              testing::ElementsAre("CHECKPOINT_FAILED", "CHECKPOINT_FAILED", "CHECKPOINT_FAILED"));
  EXPECT_EQ(learner.metrics().checkpoint_failures.Value(), 3);
  EXPECT_EQ(learner.summary().checkpoint(), "");
}

}  // namespace
}  // namespace halfstep
