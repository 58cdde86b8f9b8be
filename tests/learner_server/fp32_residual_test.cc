// SPDX-License-Identifier: Apache-2.0
// A model whose residual stream goes beyond FP16: with the stream in FP32 it trains, without it
// saturates, and the range check says so.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "learner_server/training/range_check.h"
#include "learner_server/training/train_step.h"
#include "tests/common/model/tiny_model.h"

namespace halfstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr Fp32Parts kResidual = {.residual = true, .head = false};

// The second layer adds some 1e5 to the stream.
ParameterBuffer LiftedMaster(const ModelConfig& config) {
  ParameterBuffer master = RandomMaster(config, 8);
  const Tensor down = master.view(master.layout().layers()[1].down);
  for (int64_t i = 0; i < down.elements(); ++i) down.as<float>()[i] *= 4e4f;
  return master;
}

std::vector<TrainSequence> SomeSequences(const ModelConfig& config) {
  std::vector<TrainSequence> sequences;
  for (std::vector<int32_t>& tokens : RandomSequences(config, {12, 20, 9, 16}, 5)) {
    TrainSequence& sequence = sequences.emplace_back();
    sequence.tokens = std::move(tokens);
    sequence.prompt_tokens = 1;
    sequence.advantage = 1;
  }
  return sequences;
}

struct Training {
  double first_loss = 0, last_loss = 0;
  int64_t saturated = 0;
  int64_t applied = 0;
};

Training TrainFor(int steps, const Fp32Parts& fp32) {
  const ModelConfig config = TinyConfig(Architecture::kQwen2);
  const ParameterBuffer master = LiftedMaster(config);
  const std::vector<TrainSequence> sequences = SomeSequences(config);
  TestContext ctx(2);
  TrainState state(config, std::make_shared<const ParameterLayout>(config), DType::kFloat16, 64,
                   LossScaleOptions{});
  Copy(ctx, master.flat(), state.master.flat());
  state.RefreshWeights(ctx);
  TrainStepOptions options;
  options.algorithm = SupervisedAlgorithm();
  options.schedule.peak = 0.01;
  options.fp32 = fp32;
  TrainStep step(ctx, options, &state);
  Training out;
  for (int i = 0; i < steps; ++i) {
    const auto report = step.Run(sequences, nullptr);
    EXPECT_TRUE(report.ok()) << report.status();
    if (!report.ok()) break;
    out.applied += report->applied;
    out.last_loss = report->loss.loss;
    if (i == 0) out.first_loss = report->loss.loss;
  }
  out.saturated = ctx.saturated();
  return out;
}

TEST(Fp32ResidualTest, TrainsWhatSaturatesInFp16) {
  const Training with = TrainFor(40, kResidual);
  EXPECT_EQ(with.saturated, 0);
  EXPECT_GT(with.applied, 20);
  EXPECT_LT(with.last_loss, 0.5 * with.first_loss);
  EXPECT_GT(TrainFor(1, {}).saturated, 0);
}

TEST(Fp32ResidualTest, TheRangeCheckSaysSo) {
  const ModelConfig config = TinyConfig(Architecture::kQwen2);
  const ParameterBuffer master = LiftedMaster(config);
  const std::vector<TrainSequence> sequences = SomeSequences(config);
  TestContext ctx;
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    SCOPED_TRACE(Name(dtype));
    const auto weights = WeightsFrom(config, master, dtype);
    const RangeReport without = CheckRange(ctx, *weights, sequences, {});
    EXPECT_FALSE(without.safe_in_fp16);
    EXPECT_TRUE(without.safe_with_fp32_residual);
    EXPECT_THAT(without.verdict,
                AllOf(StartsWith("safe in FP16 with residual: fp32 on these prompts, not without: "
                                 "layer 1, mlp_output goes beyond 65504"),
                      HasSubstr("; with it the largest other activation is")));

    const RangeReport with = CheckRange(ctx, *weights, sequences, {.fp32 = kResidual});
    EXPECT_TRUE(with.safe_in_fp16);
    EXPECT_THAT(with.verdict, StartsWith("safe in FP16 with residual: fp32 on these prompts: the"));
    EXPECT_GT(with.loss_scale, 0);
    double beyond = 0;
    for (const auto& [place, statistics] : with.activations) {
      if (StaysFp32(place.second, kResidual)) {
        beyond = std::max(beyond, statistics.largest);
      } else {
        EXPECT_LT(statistics.largest, 65504) << PlaceName(place, config.layers);
      }
    }
    EXPECT_GT(beyond, 65504);
  }
}

TEST(Fp32ResidualTest, TheRangeCheckPromisesNothingWhereOtherValuesOverflowToo) {
  const ModelConfig config = TinyConfig(Architecture::kQwen2);
  ParameterBuffer master = LiftedMaster(config);
  const Tensor gate_up = master.view(master.layout().layers()[2].gate_up);
  for (int64_t i = 0; i < config.hidden_size; ++i) gate_up.as<float>()[i] = 60000;
  const auto weights = WeightsFrom(config, master, DType::kFloat16);
  TestContext ctx;
  for (const Fp32Parts& fp32 : {Fp32Parts(), kResidual}) {
    const RangeReport report = CheckRange(ctx, *weights, SomeSequences(config), {.fp32 = fp32});
    EXPECT_FALSE(report.safe_in_fp16);
    EXPECT_FALSE(report.safe_with_fp32_residual);
    EXPECT_THAT(report.verdict, AllOf(StartsWith("not safe in FP16"),
                                      HasSubstr(fp32.residual ? "layer 2, gate_up" : "layer 1")));
  }
}

}  // namespace
}  // namespace halfstep
