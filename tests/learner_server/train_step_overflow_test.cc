// SPDX-License-Identifier: Apache-2.0
// Optimizer steps whose gradient does not fit: skipped, searched for the place, and avoided by a
// calibrated scale.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <set>
#include <string>
#include <utility>

#include "common/base/error_reason.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/log_prob.h"
#include "learner_server/training/gradient_range.h"
#include "tests/learner_server/train_step_fixture.h"

namespace halfstep {
namespace {

TEST_F(TrainStepTest, NonFiniteGradientChangesNothingButTheScale) {
  const auto state = MakeState(DType::kFloat16, {.initial = 0x1p24f});
  TrainStep step(ctx_, options_, state.get());
  // A large step scale overflows FP16 activation gradients; the search goes on until it does not.
  int skipped = 0;
  for (;; ++skipped) {
    const Snapshot before(*state);
    const float scale = state->scaler.scale();
    const auto report = step.Run(sequences_, nullptr);
    ASSERT_TRUE(report.ok()) << report.status();
    if (report->applied) break;
    EXPECT_TRUE(report->skipped);
    EXPECT_FALSE(report->non_finite_parameter.empty());
    EXPECT_FALSE(report->overflow.empty());
    EXPECT_EQ(report->loss_scale, scale);
    EXPECT_EQ(state->scaler.scale(), scale / 2);
    EXPECT_TRUE(Snapshot(*state) == before);
  }
  EXPECT_GT(skipped, 0);
  EXPECT_EQ(state->scaler.state().skipped_steps, skipped);
  EXPECT_EQ(state->optimizer_steps, 1);
}

// Where the overflow begins: at the logits when the scale alone is too large, and in the layer
// whose weights blow its gradient up when they are.
TEST_F(TrainStepTest, NamesTheTensorInWhichAnOverflowBegan) {
  {
    const auto state = MakeState(DType::kFloat16, StaticScale(0x1p40f));
    TrainStep step(ctx_, options_, state.get());
    EXPECT_EQ(step.Run(sequences_, nullptr)->overflow, "logits");
  }
  const auto state = MakeState(DType::kFloat16, StaticScale(1));
  const LayerParameters& layer = state->layout().layers()[0];
  const Tensor up = state->master.view(layer.gate_up);
  for (int64_t i = 0; i < up.elements(); ++i) up.as<float>()[i] *= 0x1p-8f;
  const Tensor down = state->master.view(layer.down);
  for (int64_t i = 0; i < down.elements(); ++i) down.as<float>()[i] = 60000;
  state->RefreshWeights(ctx_);
  options_.algorithm = SupervisedAlgorithm();
  for (TrainSequence& sequence : sequences_) sequence.advantage = 1e5;
  std::atomic<int64_t> saturated = 0;
  ctx_.saturated_stores = &saturated;
  TrainStep step(ctx_, options_, state.get());
  const auto report = step.Run(sequences_, nullptr);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->skipped);
  EXPECT_EQ(report->overflow, "layer 0, activation");
}

// An entropy bonus alone: no sequence has an advantage, so no log-prob has a gradient.
TEST_F(TrainStepTest, AnOverflowOfTheEntropyBonusBeginsAtTheLogits) {
  options_.algorithm = *FindAlgorithmPreset("reinforce");
  options_.algorithm.regularizers.entropy_coefficient = 1;
  for (TrainSequence& sequence : sequences_) {
    sequence.advantage = 0;
    sequence.behaviour.assign(sequence.response_tokens(), -3.5f);
  }
  const auto state = MakeState(DType::kFloat16, StaticScale(0x1p40f));
  TrainStep step(ctx_, options_, state.get());
  const auto report = step.Run(sequences_, nullptr);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->skipped);
  EXPECT_EQ(report->overflow, "logits");
}

// With the identity as the head, dL/dhidden is dL/dlogits.
TEST_F(TrainStepTest, TheRangeOfTheLogitsIsThatOfWhatTheBackwardStores) {
  constexpr int64_t kVocab = 24, kRows = 70;
  std::vector<Float16> head(kVocab * kVocab), hidden(kRows * kVocab), dhidden(hidden.size());
  for (int64_t i = 0; i < kVocab; ++i) head[i * kVocab + i] = ToFloat16(1);
  std::vector<int32_t> targets;
  for (int64_t r = 0; r < kRows; ++r) {
    targets.push_back(static_cast<int32_t>(r * 5 % kVocab));
    for (int64_t j = 0; j < kVocab; ++j) {
      hidden[r * kVocab + j] = ToFloat16(static_cast<float>((r * 7 + j * j * 3) % 23) / 3);
    }
  }
  const ConstTensor weight(head.data(), DType::kFloat16, {kVocab, kVocab});
  const auto packed_bytes =
      static_cast<int64_t>(PackedLinearBytes(kCpuDevice, DType::kFloat16, kVocab, kVocab));
  OwnedTensor packed("packed", DType::kUInt8, {packed_bytes});
  PackLinear(ctx_, weight, packed);
  const auto per_row = [](std::vector<float>& values) {
    return Tensor(values.data(), DType::kFloat32, {kRows});
  };
  std::vector<float> log_probs(kRows), entropy(kRows), lse(kRows), dlog_probs(kRows),
      weights(kRows);
  LogitGradient gradient{.hidden = {hidden.data(), DType::kFloat16, {kRows, kVocab}},
                         .head = {.weight = weight, .packed = packed.view(), .bias = {}},
                         .targets = {targets.data(), DType::kInt32, {kRows}},
                         .temperature = 0.8f,
                         .lse = per_row(lse),
                         .dlog_probs = per_row(dlog_probs),
                         .entropy = {per_row(weights), per_row(entropy)}};
  LmHeadLogProb(ctx_, gradient.hidden, gradient.head, gradient.targets, gradient.temperature,
                per_row(log_probs), per_row(entropy), per_row(lse));
  OwnedTensor dhead("dhead", DType::kFloat32, {kVocab, kVocab});
  int overflows = 0;
  for (const float scale : {1.0f, 1e3f, 3e4f, 6e4f, 1e5f, 2e5f}) {
    for (int64_t r = 0; r < kRows; ++r) {
      dlog_probs[r] = scale * static_cast<float>(r % 3 - 1) / 4;
      weights[r] = scale * static_cast<float>(r % 4);
    }
    LmHeadLogProbBackward(ctx_, gradient.dlog_probs, gradient.hidden, gradient.head,
                          gradient.targets, gradient.temperature, gradient.lse,
                          Tensor(dhidden.data(), DType::kFloat16, {kRows, kVocab}), dhead,
                          gradient.entropy);
    double largest = 0;
    bool finite = true;
    for (const Float16 value : dhidden) {
      const double magnitude = std::abs(static_cast<double>(ToFloat(value)));
      finite = finite && std::isfinite(magnitude);
      largest = std::max(largest, magnitude);
    }
    GradientRange range(DType::kFloat16, 2);
    range.Watch();
    range.AddLogits(ctx_, gradient);
    EXPECT_EQ(range.first_non_finite(), finite ? "" : "logits") << scale;
    if (finite) {
      EXPECT_NEAR(range.largest(), largest, 1e-3 * largest) << scale;
    }
    overflows += !finite;
  }
  EXPECT_GT(overflows, 0);
  EXPECT_LT(overflows, 5);
}

TEST_F(TrainStepTest, CalibrationFindsTheLargestScaleThatFits) {
  options_.calibrate_scale = true;
  std::set<float> scales;
  std::string digest;
  for (const float initial : {1.0f, 0x1p10f, 0x1p60f}) {
    const auto state = MakeState(DType::kFloat16, {.initial = initial, .minimum = 1, .maximum = 0});
    TrainStep step(ctx_, options_, state.get());
    const auto report = step.Run(sequences_, nullptr);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_TRUE(report->applied);
    EXPECT_EQ(report->loss_scale, state->scaler.scale());
    EXPECT_EQ(state->scaler.state().skipped_steps, 0);
    scales.insert(report->loss_scale);
    EXPECT_TRUE(digest.empty() || digest == report->gradient_digest);
    digest = report->gradient_digest;
    // From here on it is the scaler's.
    EXPECT_EQ(step.Run(sequences_, nullptr)->loss_scale, report->loss_scale);
  }
  ASSERT_EQ(scales.size(), 1u);
  options_.calibrate_scale = false;
  // The largest gradient lies between an eighth and a quarter of the limit.
  for (const auto& [factor, skipped] : {std::pair(1.0f, false), std::pair(8.0f, true)}) {
    const auto state = MakeState(DType::kFloat16, StaticScale(*scales.begin() * factor));
    TrainStep step(ctx_, options_, state.get());
    EXPECT_EQ(step.Run(sequences_, nullptr)->skipped, skipped) << factor;
  }
}

TEST_F(TrainStepTest, CalibrationStaysWithinTheRangeOfTheScaler) {
  options_.calibrate_scale = true;
  const auto state = MakeState(DType::kFloat16, {.initial = 1, .minimum = 1, .maximum = 4});
  TrainStep step(ctx_, options_, state.get());
  EXPECT_EQ(step.Run(sequences_, nullptr)->loss_scale, 4);
}

TEST_F(TrainStepTest, FailsAtTheFloorOfTheScale) {
  const auto state = MakeState(DType::kFloat16, {.initial = 0x1p24f, .minimum = 0x1p24f});
  const Snapshot before(*state);
  TrainStep step(ctx_, options_, state.get());
  const auto report = step.Run(sequences_, nullptr);
  EXPECT_EQ(ReasonOf(report.status()), "LOSS_SCALE_FLOOR");
  EXPECT_TRUE(Snapshot(*state) == before);
}

TEST_F(TrainStepTest, NonFiniteForwardIsATypedFailure) {
  const auto state = MakeState(DType::kFloat32, StaticScale(1));
  state->master.view(state->layout().final_norm()).as<float>()[3] = NAN;
  state->RefreshWeights(ctx_);
  TrainStep step(ctx_, options_, state.get());
  const auto report = step.Run(sequences_, nullptr);
  EXPECT_EQ(report.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(report.status()), "NON_FINITE_LOSS");
}

}  // namespace
}  // namespace halfstep
