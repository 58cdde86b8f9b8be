// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/range_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "kernels/ops/activation.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/elementwise.h"
#include "kernels/ops/embedding.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/log_prob.h"
#include "kernels/ops/norm.h"
#include "kernels/ops/rope.h"
#include "tests/common/model/tiny_model.h"

namespace halfstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Place = RangeReport::Place;

std::vector<TrainSequence> SequencesOf(const ModelConfig& config, const std::vector<int>& lengths) {
  std::vector<TrainSequence> sequences;
  for (std::vector<int32_t>& tokens : RandomSequences(config, lengths, 5)) {
    TrainSequence& sequence = sequences.emplace_back();
    sequence.tokens = std::move(tokens);
    sequence.prompt_tokens = 1;
  }
  return sequences;
}

double Largest(ConstTensor values) {
  double largest = 0;
  const float* data = values.as<float>();
  for (int64_t i = 0; i < values.elements(); ++i) {
    largest = std::max<double>(largest, std::abs(data[i]));
  }
  return largest;
}

// The first layer of a model without QK-norm in FP32, one operation after another on all tokens,
// every result kept: the maxima that the report must name.
std::map<Place, double> FirstLayerByHand(const ModelConfig& config, const ModelWeights& weights,
                                         const PackedBatch& batch) {
  TestContext ctx;
  const LayerParameters& layer = weights.parameters().layout().layers()[0];
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  const auto indices = [](const std::vector<int32_t>& values) {
    return ConstTensor(values.data(), DType::kInt32, {static_cast<int64_t>(values.size())});
  };
  std::map<Place, double> maxima;
  const auto keep = [&](StoredKind kind, ConstTensor values) {
    double& largest = maxima[{0, kind}];
    largest = std::max(largest, Largest(values));
  };
  const auto make = [](Shape shape) { return OwnedTensor("hand", DType::kFloat32, shape); };
  OwnedTensor x = make({tokens, config.hidden_size});
  Embedding(ctx, indices(batch.tokens), weights.view(weights.parameters().layout().embedding()), x);
  keep(StoredKind::kEmbedding, x.view());
  OwnedTensor normed = make({tokens, config.hidden_size});
  RmsNorm(ctx, x, weights.view(layer.attention_norm), config.rms_norm_epsilon, normed, Tensor());
  keep(StoredKind::kAttentionNorm, normed.view());
  OwnedTensor qkv = make({tokens, config.q_width() + 2 * config.kv_width()});
  Linear(ctx, normed, weights.linear(layer.qkv, layer.qkv_bias), qkv);
  OwnedTensor q = make({tokens, config.heads, config.head_dim});
  OwnedTensor k = make({tokens, config.kv_heads, config.head_dim});
  OwnedTensor v = make({tokens, config.kv_heads, config.head_dim});
  const std::array<Tensor, 3> parts = {q.view().Reshape({tokens, config.q_width()}),
                                       k.view().Reshape({tokens, config.kv_width()}),
                                       v.view().Reshape({tokens, config.kv_width()})};
  SplitColumns(ctx, qkv, parts);
  keep(StoredKind::kQuery, q.view());
  keep(StoredKind::kKey, k.view());
  keep(StoredKind::kValue, v.view());
  Rope(ctx, q, indices(batch.positions), weights.rope_table(), q);
  Rope(ctx, k, indices(batch.positions), weights.rope_table(), k);
  keep(StoredKind::kQuery, q.view());
  keep(StoredKind::kKey, k.view());
  OwnedTensor attention = make({tokens, config.heads, config.head_dim});
  OwnedTensor lse = make({config.heads, tokens});
  CausalAttention(
      ctx,
      {q, k, v, indices(batch.cu_seqlens), 1.0f / std::sqrt(static_cast<float>(config.head_dim))},
      attention, lse);
  keep(StoredKind::kAttention, attention.view());
  OwnedTensor mid = make({tokens, config.hidden_size});
  Linear(ctx, attention.view().Reshape({tokens, config.q_width()}),
         weights.linear(layer.attention_out, layer.attention_out_bias), mid);
  keep(StoredKind::kAttentionOutput, mid.view());
  Add(ctx, x, mid, Overflow::kSaturate, mid);
  keep(StoredKind::kAttentionResidual, mid.view());
  RmsNorm(ctx, mid, weights.view(layer.mlp_norm), config.rms_norm_epsilon, normed, Tensor());
  keep(StoredKind::kMlpNorm, normed.view());
  OwnedTensor gate_up = make({tokens, 2 * config.intermediate_size});
  Linear(ctx, normed, weights.linear(layer.gate_up, layer.gate_up_bias), gate_up);
  keep(StoredKind::kGateUp, gate_up.view());
  OwnedTensor activation = make({tokens, config.intermediate_size});
  SwiGlu(ctx, gate_up, activation);
  keep(StoredKind::kActivation, activation.view());
  OwnedTensor output = make({tokens, config.hidden_size});
  Linear(ctx, activation, weights.linear(layer.down, layer.down_bias), output);
  keep(StoredKind::kMlpOutput, output.view());
  Add(ctx, mid, output, Overflow::kSaturate, output);
  keep(StoredKind::kMlpResidual, output.view());
  return maxima;
}

TEST(RangeCheckTest, MaximaAreThoseOfAForwardByHand) {
  const ModelConfig config = TinyConfig(Architecture::kLlama);
  const auto weights = WeightsFrom(config, RandomMaster(config, 3), DType::kFloat32);
  const std::vector<TrainSequence> sequences = SequencesOf(config, {9, 17, 5});
  TestContext ctx;
  const RangeReport report = CheckRange(ctx, *weights, sequences, {.micro_batch_tokens = 20});

  const std::vector<int64_t> all = {0, 1, 2};
  const std::vector<MicroBatch> one = PackMicroBatches(sequences, all, 1000);
  ASSERT_EQ(one.size(), 1u);
  const std::map<Place, double> expected = FirstLayerByHand(config, *weights, one[0].batch);
  ASSERT_EQ(expected.size(), 13u);
  for (const auto& [place, largest] : expected) {
    ASSERT_TRUE(report.activations.contains(place)) << Name(place.second);
    EXPECT_EQ(report.activations.at(place).largest, largest) << Name(place.second);
  }
  EXPECT_EQ(report.tokens, 8 + 16 + 4);
  // Embedding, twelve kinds in each layer, the final norm.
  EXPECT_EQ(report.activations.size(), 1u + 12u * config.layers + 1u);
  EXPECT_GT(report.logits.largest, 0);
}

TEST(RangeCheckTest, GradientsAreThoseOfAPassWithoutAnObserver) {
  const ModelConfig config = TinyConfig(Architecture::kLlama);
  const auto weights = WeightsFrom(config, RandomMaster(config, 3), DType::kFloat32);
  const std::vector<TrainSequence> sequences = SequencesOf(config, {9, 17, 5});
  TestContext ctx;
  const RangeReport report = CheckRange(ctx, *weights, sequences, {.micro_batch_tokens = 20});
  ASSERT_TRUE(report.safe_in_fp16) << report.verdict;

  const std::vector<int64_t> all = {0, 1, 2};
  const std::vector<MicroBatch> one = PackMicroBatches(sequences, all, 1000);
  const PackedBatch& batch = one.at(0).batch;
  const auto rows = static_cast<int64_t>(batch.logit_rows.size());
  const ConstTensor targets(batch.targets.data(), DType::kInt32, {rows});
  OwnedTensor hidden("hidden", DType::kFloat32, {rows, config.hidden_size});
  OwnedTensor dhidden("dhidden", DType::kFloat32, {rows, config.hidden_size});
  OwnedTensor log_probs("log_probs", DType::kFloat32, {rows});
  OwnedTensor lse("lse", DType::kFloat32, {rows});
  OwnedTensor dlog_probs("dlog_probs", DType::kFloat32, {rows});
  for (int64_t i = 0; i < rows; ++i) {
    dlog_probs.view().as<float>()[i] = static_cast<float>(-report.loss_scale / rows);
  }
  const Transformer transformer(config);
  TrainActivations activations;
  ModelGradients gradients(weights->parameters().shared_layout());
  gradients.SetZero(ctx);
  transformer.ForwardTrain(ctx, *weights, batch, Recompute::kNone, &activations, hidden);
  LmHeadLogProb(ctx, hidden, weights->head(), targets, 1, log_probs, {}, lse);
  LmHeadLogProbBackward(ctx, dlog_probs, hidden, weights->head(), targets, 1, lse, dhidden,
                        gradients.head());
  transformer.Backward(ctx, *weights, batch, activations, dhidden, &gradients);
  const ParameterBuffer& gradient = gradients.Finish(ctx);

  const std::vector<ParameterSpec>& specs = gradient.layout().specs();
  ASSERT_EQ(report.weight_gradients.size(), specs.size());
  for (size_t i = 0; i < specs.size(); ++i) {
    EXPECT_EQ(report.weight_gradients.at(specs[i].name).largest,
              Largest(gradient.view(static_cast<int>(i))))
        << specs[i].name;
  }
  EXPECT_EQ(report.gradients.at({config.layers, StoredKind::kFinalNorm}).largest,
            Largest(dhidden.view()));
  // Those of the two projections onto the stream are those of their sums.
  for (const auto& [place, statistics] : report.activations) {
    const bool is_sum =
        place.second == StoredKind::kAttentionOutput || place.second == StoredKind::kMlpOutput;
    EXPECT_EQ(report.gradients.contains(place), !is_sum) << PlaceName(place, config.layers);
  }
}

// Scaling by a power of two is exact, so in FP32 the gradients at the scale that fits are those at
// 1 times that scale.
TEST(RangeCheckTest, TheScaleIsTheLargestThatKeepsGradientsBelowTheLimit) {
  const ModelConfig config = TinyConfig(Architecture::kQwen3);
  const std::vector<TrainSequence> sequences = SequencesOf(config, {12, 20});
  for (const DType dtype : {DType::kFloat32, DType::kFloat16}) {
    const auto weights = WeightsFrom(config, RandomMaster(config, 4), dtype);
    TestContext ctx;
    const RangeReport report = CheckRange(ctx, *weights, sequences, {});
    ASSERT_TRUE(report.safe_in_fp16) << report.verdict;
    int exponent = 0;
    EXPECT_EQ(std::frexp(report.loss_scale, &exponent), 0.5);
    double largest = 0;
    for (const auto& [place, statistics] : report.gradients) {
      EXPECT_EQ(statistics.non_finite, 0) << PlaceName(place, config.layers);
      largest = std::max(largest, statistics.largest);
    }
    EXPECT_LT(largest, 65504.0 / 4);
    EXPECT_GE(2 * largest, 65504.0 / 4);
    EXPECT_EQ(report.weight_gradients.size(), weights->parameters().layout().specs().size());
  }
}

TEST(RangeCheckTest, OneOverflowingWeightIsNamedByLayerAndKind) {
  const ModelConfig config = TinyConfig(Architecture::kQwen2);
  const std::vector<TrainSequence> sequences = SequencesOf(config, {12, 20});
  for (const DType dtype : {DType::kFloat32, DType::kFloat16}) {
    ParameterBuffer master = RandomMaster(config, 6);
    const Tensor gate_up = master.view(master.layout().layers()[1].gate_up);
    for (int64_t i = 0; i < config.hidden_size; ++i) gate_up.as<float>()[i] = 30000;
    const auto weights = WeightsFrom(config, master, dtype);
    TestContext ctx;
    const RangeReport report = CheckRange(ctx, *weights, sequences, {});
    EXPECT_FALSE(report.safe_in_fp16);
    EXPECT_THAT(report.verdict, AllOf(StartsWith("not safe in FP16: layer 1, gate_up"),
                                      HasSubstr("65504"), HasSubstr("bf16")));
    EXPECT_GT(report.activations.at({1, StoredKind::kGateUp}).saturated, 0);
    EXPECT_EQ(report.activations.at({1, StoredKind::kMlpNorm}).saturated, 0);
    EXPECT_EQ(report.activations.at({0, StoredKind::kGateUp}).saturated, 0);
  }
}

TEST(RangeCheckTest, NanIsNamedWhereItAppears) {
  const ModelConfig config = TinyConfig(Architecture::kQwen2);
  ParameterBuffer master = RandomMaster(config, 7);
  const Tensor out = master.view(master.layout().layers()[2].attention_out);
  out.as<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  const auto weights = WeightsFrom(config, master, DType::kFloat16);
  TestContext ctx;
  const RangeReport report = CheckRange(ctx, *weights, SequencesOf(config, {12}), {});
  EXPECT_FALSE(report.safe_in_fp16);
  EXPECT_EQ(report.loss_scale, 0);
  EXPECT_TRUE(report.gradients.empty());
  EXPECT_THAT(report.verdict, HasSubstr("NaN or Inf from layer 2, attention_output"));
}

TEST(RangeStatisticsTest, CountsWhatFp16CannotHold) {
  const std::vector<Float16> values = {ToFloat16(65504), ToFloat16(0x1p-15f), ToFloat16(0),
                                       ToFloat16(-2),    ToFloat16(INFINITY), ToFloat16(0x1p-14f),
                                       ToFloat16(0),     ToFloat16(0),        ToFloat16(0)};
  RangeStatistics statistics;
  statistics.Add(ConstTensor(values.data(), DType::kFloat16, {3, 3}));
  EXPECT_EQ(statistics.largest, 65504);
  EXPECT_EQ(statistics.elements, 9);
  EXPECT_EQ(statistics.saturated, 1);
  EXPECT_EQ(statistics.subnormal, 1);
  EXPECT_EQ(statistics.zero, 1) << "a row of zeros is no underflow";
  EXPECT_EQ(statistics.non_finite, 1);
}

}  // namespace
}  // namespace halfstep
