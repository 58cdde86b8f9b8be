// SPDX-License-Identifier: Apache-2.0
// Whole runs in every pair of precisions, with FP32 parts and with a loss scale far too large.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "common/weight_sync/weight_set.h"
#include "kernels/thread_pool.h"
#include "kernels/workspace.h"
#include "learner_server/training/job_inputs.h"
#include "learner_server/training/job_settings.h"
#include "learner_server/training/train_checkpoint.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

constexpr v1::Precision kPrecisions[] = {v1::PRECISION_FP16, v1::PRECISION_BF16,
                                         v1::PRECISION_FP32};

// The engine of this process, and what was last published to it.
class RecordingPool final : public RolloutPool {
 public:
  void BeginJob(const RolloutJob& job, SampleSink* sink) override {
    job_ = job;
    pool_.BeginJob(job, sink);
  }
  void EndJob() override { pool_.EndJob(); }
  void Publish(std::shared_ptr<const WeightSet> weights) override {
    last_ = weights;
    pool_.Publish(std::move(weights));
  }
  void ReleaseWeightsBelow(uint64_t version) override { pool_.ReleaseWeightsBelow(version); }
  void Assign(std::vector<GroupAssignment> groups) override { pool_.Assign(std::move(groups)); }
  RolloutPoolStatus Status() const override { return pool_.Status(); }

  const RolloutJob& job() const { return job_; }
  const WeightManifest& last() const { return last_->manifest(); }

 private:
  LocalRolloutPool pool_;
  RolloutJob job_;
  std::shared_ptr<const WeightSet> last_;
};

// Value by value, by the scalar conversions.
OwnedTensor RoundToNearest(ConstTensor master, DType dtype) {
  OwnedTensor out("rounded", dtype, master.shape());
  const float* from = master.as<float>();
  for (int64_t i = 0; i < master.elements(); ++i) {
    switch (dtype) {
      case DType::kFloat16:
        out.view().as<Float16>()[i] = ToFloat16(from[i]);
        break;
      case DType::kBFloat16:
        out.view().as<BFloat16>()[i] = ToBFloat16(from[i]);
        break;
      default:
        out.view().as<float>()[i] = from[i];
    }
  }
  return out;
}

class PrecisionTest : public testing::Test {
 protected:
  // The base model, made once.
  static void SetUpTestSuite() {
    workplace_ = new TinyWorkplace();
    TinyLearner learner(workplace_->root().path(), nullptr);
    const auto result = learner.Run("sft", TinyWorkplace::SupervisedSpec(60));
    ASSERT_TRUE(result.ok()) << result.status();
  }
  static void TearDownTestSuite() { delete workplace_; }

  static const std::string& root() { return workplace_->root().path(); }

  // The state that the run's last checkpoint holds.
  static std::unique_ptr<TrainState> StateOf(const v1::TrainingJobSpec& spec,
                                             const v1::RunSummary& summary) {
    const auto settings = MakeJobSettings(spec, root());
    EXPECT_TRUE(settings.ok()) << settings.status();
    const auto inputs = LoadJobInputs(*settings);
    EXPECT_TRUE(inputs.ok()) << inputs.status();
    auto state = std::make_unique<TrainState>(inputs->model.config, inputs->model.layout,
                                              settings->learner_dtype, inputs->max_sequence_tokens,
                                              settings->loss_scale);
    Workspace workspace;
    ExecContext ctx;
    ctx.workspace = &workspace;
    const auto progress =
        ReadCheckpoint(ctx, summary.checkpoint(), settings->loss_scale, state.get());
    EXPECT_TRUE(progress.ok()) << progress.status();
    return state;
  }

  static void ExpectFinite(const TrainState& state) {
    const ConstTensor master = state.master.flat();
    EXPECT_TRUE(std::all_of(master.as<float>(), master.as<float>() + master.elements(),
                            [](float weight) { return std::isfinite(weight); }));
  }

  static TinyWorkplace* workplace_;
};

TinyWorkplace* PrecisionTest::workplace_ = nullptr;

TEST_F(PrecisionTest, AllNinePairsTrainAndPublishTheRoundedMaster) {
  for (const v1::Precision rollout : kPrecisions) {
    for (const v1::Precision learner_side : kPrecisions) {
      const std::string name = absl::StrCat("cell_", rollout, "_", learner_side);
      SCOPED_TRACE(name);
      v1::TrainingJobSpec spec = TinyWorkplace::RlSpec(name, 4);
      spec.mutable_precision()->set_rollout(rollout);
      spec.mutable_precision()->set_learner(learner_side);
      if (rollout != learner_side) spec.set_profile(v1::PROFILE_FAST);
      RecordingPool pool;
      TinyLearner learner(root(), &pool);
      const auto result = learner.Run(name, spec);
      ASSERT_TRUE(result.ok()) << result.status();
      const v1::RunSummary& summary = learner.summary();
      EXPECT_EQ(summary.max_abs_logprob_diff() == 0, rollout == learner_side);
      EXPECT_EQ(summary.final_loss_scale(), learner_side == v1::PRECISION_FP16 ? 65536 : 1);
      EXPECT_EQ(summary.skipped_steps(), 0);

      const std::unique_ptr<TrainState> state = StateOf(spec, summary);
      EXPECT_EQ(state->optimizer_steps, 4);
      ExpectFinite(*state);
      std::vector<TensorManifest> want =
          WireTensors(state->layout(), pool.job().precision, state->weights.rope_table().shape());
      for (size_t i = 0; i < want.size(); ++i) {
        const bool table = want[i].name == kRopeTableName;
        const ConstTensor exact =
            table ? state->weights.rope_table() : state->master.view(static_cast<int>(i));
        want[i].digest = DigestTensor(
            want[i].name, RoundToNearest(exact, table ? DType::kFloat32 : pool.job().precision));
      }
      EXPECT_EQ(pool.last().version, 4u);
      EXPECT_EQ(pool.last().manifest_digest, ManifestDigest(want));
    }
  }
}

TEST_F(PrecisionTest, Fp32PartsTrainWithoutMismatchToOtherWeights) {
  for (const v1::Precision precision : {v1::PRECISION_FP16, v1::PRECISION_BF16}) {
    std::vector<std::string> digests;
    for (const bool parts : {false, true}) {
      const std::string name = absl::StrCat("parts_", precision, "_", parts);
      SCOPED_TRACE(name);
      v1::TrainingJobSpec spec = TinyWorkplace::RlSpec(name, 6);
      spec.mutable_precision()->set_rollout(precision);
      spec.mutable_precision()->set_learner(precision);
      if (parts) {
        spec.mutable_precision()->set_residual(v1::PRECISION_FP32);
        spec.mutable_precision()->set_head(v1::PRECISION_FP32);
      }
      // Old log-probs are those of the rollout, or a second pass of the learner's.
      spec.mutable_algorithm()->set_preset(v1::ALGORITHM_PRESET_GRPO_SEQ_MIS);
      spec.mutable_batch()->set_updates(2);
      RecordingPool pool;
      TinyLearner learner(root(), &pool);
      const auto result = learner.Run(name, spec);
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_EQ(pool.job().fp32, (Fp32Parts{.residual = parts, .head = parts}));
      EXPECT_GT(learner.summary().tokens_compared(), 6 * 16);
      EXPECT_EQ(learner.summary().max_abs_logprob_diff(), 0);
      digests.push_back(learner.summary().weights_digest());

      spec.set_output_dir(name + "_lagging");
      spec.mutable_batch()->set_lag(1);
      RecordingPool lagging;
      TinyLearner again(root(), &lagging);
      ASSERT_TRUE(again.Run(spec.output_dir(), spec).ok());
      EXPECT_EQ(again.summary().max_abs_logprob_diff(), 0);
    }
    EXPECT_NE(digests[0], digests[1]);
  }
}

TEST_F(PrecisionTest, Fp32PartsChangeNothingBesideFp32Weights) {
  std::vector<std::string> digests;
  for (const bool parts : {false, true}) {
    v1::TrainingJobSpec spec = TinyWorkplace::RlSpec(absl::StrCat("fp32_", parts), 3);
    spec.mutable_precision()->set_rollout(v1::PRECISION_FP32);
    spec.mutable_precision()->set_learner(v1::PRECISION_FP32);
    if (parts) {
      spec.mutable_precision()->set_residual(v1::PRECISION_FP32);
      spec.mutable_precision()->set_head(v1::PRECISION_FP32);
    }
    RecordingPool pool;
    TinyLearner learner(root(), &pool);
    ASSERT_TRUE(learner.Run(spec.output_dir(), spec).ok());
    digests.push_back(learner.summary().weights_digest());
  }
  EXPECT_EQ(digests[0], digests[1]);
}

TEST_F(PrecisionTest, AnAbsurdLossScaleBacksOffUntilStepsAreApplied) {
  v1::TrainingJobSpec spec = TinyWorkplace::SupervisedSpec(150);
  spec.set_output_dir("absurd");
  spec.mutable_batch()->set_prompts(4);
  spec.mutable_loss_scale()->set_preset(v1::LOSS_SCALE_PRESET_TORCH);
  spec.mutable_loss_scale()->set_initial(0x1p126);
  TinyLearner learner(root(), nullptr);
  const auto result = learner.Run("absurd", spec);
  ASSERT_TRUE(result.ok()) << result.status();
  const v1::RunSummary& summary = learner.summary();
  EXPECT_GT(summary.skipped_steps(), 90);
  EXPECT_EQ(summary.final_loss_scale(),
            std::exp2(126 - static_cast<double>(summary.skipped_steps())));
  const std::unique_ptr<TrainState> state = StateOf(spec, summary);
  EXPECT_EQ(state->optimizer_steps, 150 - summary.skipped_steps());
  EXPECT_GT(state->optimizer_steps, 20);
  ExpectFinite(*state);
}

}  // namespace
}  // namespace halfstep
