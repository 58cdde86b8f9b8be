// SPDX-License-Identifier: Apache-2.0
// Models whose residual stream or head stays FP32 beside 16-bit weights: the bitwise contract, the
// gradients, and what an FP32 stream holds that FP16 cannot.
#include "common/model/fp32_parts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/ops/attention.h"
#include "kernels/ops/log_prob.h"
#include "tests/common/model/tiny_model.h"

namespace halfstep {
namespace {

using Case = std::tuple<Architecture, DType, Fp32Parts>;

void ExpectEqualBytes(ConstTensor a, ConstTensor b, const std::string& what) {
  ASSERT_EQ(a.bytes(), b.bytes()) << what;
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.bytes()), 0) << what;
}

double RelativeDistance(ConstTensor got, ConstTensor want) {
  double square = 0, norm = 0;
  for (int64_t i = 0; i < want.elements(); ++i) {
    const double exact = want.as<float>()[i];
    square += std::pow(got.as<float>()[i] - exact, 2);
    norm += exact * exact;
  }
  return std::sqrt(square / norm);
}

// What the learner computes of given tokens: log-probs, and the gradient of -sum(log-prob).
struct Trained {
  OwnedTensor log_probs;
  std::unique_ptr<ModelGradients> parameters;
  ConstTensor gradient;
  int64_t saturated = 0;
};

Trained Train(const ModelWeights& weights, const Fp32Parts& fp32,
              const std::vector<Sequences>& parts, Recompute recompute, int threads = 1) {
  TestContext ctx(threads);
  const Transformer transformer(weights.config(), fp32);
  const int64_t width = weights.config().hidden_size;
  int64_t total = 0;
  for (const Sequences& part : parts) total += static_cast<int64_t>(Pack(part).tokens.size());
  Trained out;
  out.log_probs = OwnedTensor("log_probs", DType::kFloat32, {total}, kTestDevice);
  out.parameters =
      std::make_unique<ModelGradients>(weights.parameters().shared_layout(), kTestDevice);
  TrainActivations activations;
  int64_t first = 0;
  for (const Sequences& part : parts) {
    const PackedBatch batch = Pack(part);
    const auto rows = static_cast<int64_t>(batch.tokens.size());
    const OwnedTensor targets = OnTestDevice(batch.targets);
    OwnedTensor hidden("hidden", fp32.hidden_dtype(weights.dtype()), {rows, width}, kTestDevice);
    OwnedTensor dhidden("dhidden", fp32.hidden_dtype(weights.dtype()), {rows, width}, kTestDevice);
    OwnedTensor lse("lse", DType::kFloat32, {rows}, kTestDevice);
    const std::vector<float> ones(static_cast<size_t>(rows), -1.0f);
    transformer.ForwardTrain(ctx, weights, batch, recompute, &activations, hidden);
    LmHeadLogProb(ctx, hidden, weights.head(), targets, 1, out.log_probs.view().Rows(first, rows),
                  Tensor(), lse);
    LmHeadLogProbBackward(ctx, OnTestDevice(ones), hidden, weights.head(), targets, 1, lse, dhidden,
                          out.parameters->head());
    transformer.Backward(ctx, weights, batch, activations, dhidden, out.parameters.get());
    first += rows;
  }
  out.gradient = out.parameters->Finish(ctx).flat();
  out.saturated = ctx.saturated();
  return out;
}

// Log-probs of the same tokens by the rollout's engine: a prefill of the first half, the rest token
// by token, only every other row of the prefill scored.
void CheckRollout(const ModelWeights& weights, const Fp32Parts& fp32,
                  const std::vector<int32_t>& tokens, Profile profile, const Trained& trained) {
  TestContext ctx(2, profile);
  const Transformer transformer(weights.config(), fp32);
  const PackedBatch whole = Pack({tokens});
  const auto count = static_cast<int64_t>(tokens.size());
  const int64_t blocks = (count + kKvBlockTokens - 1) / kKvBlockTokens;
  KvCache cache(weights.config(), weights.dtype(), blocks, kTestDevice);
  double largest = 0;
  for (int64_t done = 0; done < count;) {
    const int64_t rows = done == 0 ? count / 2 : 1;
    StepBatch step;
    std::vector<int32_t> targets;
    std::vector<int64_t> scored;
    for (int64_t i = 0; i < rows; ++i) {
      const auto position = static_cast<int32_t>(done + i);
      step.tokens.push_back(tokens[static_cast<size_t>(position)]);
      step.positions.push_back(position);
      step.slots.push_back(position);
      if (rows > 1 && i % 2 == 0) continue;
      step.logit_rows.push_back(static_cast<int32_t>(i));
      targets.push_back(whole.targets[static_cast<size_t>(position)]);
      scored.push_back(position);
    }
    step.query_start = {0, static_cast<int32_t>(rows)};
    step.context = {static_cast<int32_t>(done + rows)};
    step.max_blocks = blocks;
    for (int32_t block = 0; block < blocks; ++block) step.block_tables.push_back(block);
    const auto logits = static_cast<int64_t>(scored.size());
    OwnedTensor hidden("hidden", fp32.hidden_dtype(weights.dtype()),
                       {logits, weights.config().hidden_size}, kTestDevice);
    OwnedTensor log_probs("log_probs", DType::kFloat32, {logits}, kTestDevice);
    transformer.ForwardInfer(ctx, weights, step, &cache, hidden);
    LmHeadLogProb(ctx, hidden, weights.head(), OnTestDevice(targets), 1, log_probs, Tensor(),
                  Tensor());
    for (int64_t row = 0; row < logits; ++row) {
      const float got = log_probs.view().as<float>()[row];
      const float want = trained.log_probs.view().as<float>()[scored[row]];
      if (profile == Profile::kBitwise) {
        ASSERT_EQ(std::memcmp(&got, &want, sizeof(float)), 0) << "token " << scored[row];
      }
      largest = std::max(largest, std::abs(static_cast<double>(got) - want));
    }
    done += rows;
  }
  if (profile == Profile::kBitwise) return;
  EXPECT_GT(largest, 0) << "another engine";
  EXPECT_LT(largest, weights.dtype() == DType::kFloat16 ? 0.05 : 0.4);
}

class Fp32PartsTest : public ::testing::TestWithParam<Case> {
 protected:
  Fp32PartsTest()
      : config_(TinyConfig(std::get<0>(GetParam()))),
        dtype_(std::get<1>(GetParam())),
        fp32_(std::get<2>(GetParam())),
        weights_(WeightsFrom(config_, RandomMaster(config_, 3), dtype_)) {}

  ModelConfig config_;
  DType dtype_;
  Fp32Parts fp32_;
  std::unique_ptr<ModelWeights> weights_;
};

std::string CaseName(const ::testing::TestParamInfo<Case>& info) {
  static constexpr const char* kNames[] = {"Llama", "Qwen2", "Qwen3"};
  const Fp32Parts& fp32 = std::get<2>(info.param);
  return std::string(kNames[static_cast<int>(std::get<0>(info.param))]) + "_" +
         Name(std::get<1>(info.param)) + (fp32.residual ? "_residual" : "") +
         (fp32.head ? "_head" : "");
}

// Every combination on the CPU; emulated, which is slow, each value at least once.
std::vector<Case> Cases() {
  const Fp32Parts residual{.residual = true, .head = false};
  const Fp32Parts head{.residual = false, .head = true};
  const Fp32Parts both{.residual = true, .head = true};
  if (kEmulated) {
    return {{Architecture::kQwen3, DType::kFloat16, residual},
            {Architecture::kLlama, DType::kBFloat16, head},
            {Architecture::kQwen2, DType::kFloat16, both}};
  }
  std::vector<Case> cases;
  for (const auto architecture :
       {Architecture::kLlama, Architecture::kQwen2, Architecture::kQwen3}) {
    for (const auto dtype : {DType::kFloat16, DType::kBFloat16}) {
      for (const Fp32Parts& parts : {residual, head, both}) {
        cases.emplace_back(architecture, dtype, parts);
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Models, Fp32PartsTest, ::testing::ValuesIn(Cases()), CaseName);

TEST_P(Fp32PartsTest, RolloutLogProbsAreTheLearnersBits) {
  const std::vector<int32_t> tokens = RandomSequences(config_, {77}, 11)[0];
  const Trained trained = Train(*weights_, fp32_, {{tokens}}, Recompute::kNone);
  CheckRollout(*weights_, fp32_, tokens, Profile::kBitwise, trained);
  CheckRollout(*weights_, fp32_, tokens, Profile::kFast, trained);
}

TEST_P(Fp32PartsTest, RecomputationMicroBatchesAndThreadsChangeNoBit) {
  const Sequences s = RandomSequences(config_, kSplitLengths, 12);
  const Trained whole = Train(*weights_, fp32_, {s}, Recompute::kNone);
  const Trained recomputed = Train(*weights_, fp32_, {s}, Recompute::kLayer);
  const Trained split =
      Train(*weights_, fp32_, {{s[0]}, {s[1], s[2]}, {s[3]}, {s[4]}}, Recompute::kLayer, 3);
  ExpectEqualBytes(recomputed.log_probs, whole.log_probs, "log-probs, recomputed");
  ExpectEqualBytes(recomputed.gradient, whole.gradient, "gradients, recomputed");
  ExpectEqualBytes(split.log_probs, whole.log_probs, "log-probs, split");
  ExpectEqualBytes(split.gradient, whole.gradient, "gradients, split");
}

// With the same rounded weights in FP32, whose gradients are checked by finite differences. What is
// left is the rounding of the other activations.
TEST_P(Fp32PartsTest, GradientsAreThoseOfTheFp32ModelButForRounding) {
  const Sequences sequences = RandomSequences(config_, {30, 45}, 13);
  ParameterBuffer rounded(weights_->parameters().shared_layout(), DType::kFloat32, "rounded",
                          kTestDevice);
  Cast(TestContext(), std::as_const(*weights_).parameters().flat(), Overflow::kInfinity,
       rounded.flat());
  const Trained exact =
      Train(*WeightsFrom(config_, rounded, DType::kFloat32), fp32_, {sequences}, Recompute::kNone);
  const Trained with = Train(*weights_, fp32_, {sequences}, Recompute::kNone);
  const Trained without = Train(*weights_, {}, {sequences}, Recompute::kNone);
  EXPECT_LT(RelativeDistance(with.gradient, exact.gradient),
            dtype_ == DType::kFloat16 ? 0.01 : 0.08);
  EXPECT_GT(RelativeDistance(without.gradient, with.gradient), 0);
}

TEST(Fp32PartsGradientTest, MatchesFiniteDifferences) {
  if (kEmulated) GTEST_SKIP() << "minutes; the test above compares with the FP32 model";
  const Fp32Parts fp32 = {.residual = true, .head = true};
  for (const Architecture architecture : {Architecture::kLlama, Architecture::kQwen3}) {
    const ModelConfig config = TinyConfig(architecture);
    ParameterBuffer master = RandomMaster(config, 21);
    const Sequences sequences = RandomSequences(config, {9, 36}, 22);
    const auto train = [&] {
      return Train(*WeightsFrom(config, master, DType::kFloat16), fp32, {sequences},
                   Recompute::kNone);
    };
    const auto loss = [&] {
      const Trained trained = train();
      double sum = 0;
      for (int64_t i = 0; i < trained.log_probs.view().elements(); ++i) {
        sum -= trained.log_probs.view().as<float>()[i];
      }
      return sum;
    };
    const Trained trained = train();
    const auto& specs = master.layout().specs();
    size_t steep = 0;
    for (size_t p = 0; p < specs.size(); ++p) {
      const Tensor parameter = master.view(static_cast<int>(p));
      const Tensor gradient = trained.parameters->view(static_cast<int>(p));
      const int64_t n = parameter.elements();
      // Along the gradient, by a step that FP16 weights take up: the loss changes by far more than
      // its rounding.
      double square = 0;
      for (int64_t i = 0; i < n; ++i) square += std::pow(gradient.as<float>()[i], 2);
      const double norm = std::sqrt(square);
      const std::vector<float> saved(parameter.as<float>(), parameter.as<float>() + n);
      const double step = 0.02;
      const auto shifted = [&](double by) {
        for (int64_t i = 0; i < n; ++i) {
          parameter.as<float>()[i] =
              saved[i] + static_cast<float>(by * gradient.as<float>()[i] / norm);
        }
        return loss();
      };
      const double numeric = (shifted(step) - shifted(-step)) / (2 * step);
      std::copy(saved.begin(), saved.end(), parameter.as<float>());
      // The log-probs of 45 tokens, each known to some 1e-3, leave 0.2 of such a quotient.
      EXPECT_NEAR(numeric, norm, 0.06 * norm + 0.2) << specs[p].name;
      steep += norm > 2;
    }
    EXPECT_GT(steep, specs.size() / 2) << "the noise is not what is compared";
  }
}

// A down projection that lifts the stream far beyond 65 504, where its own values are all small.
TEST(Fp32PartsOverflowTest, AnFp32StreamHoldsWhatFp16WouldSaturate) {
  const ModelConfig config = TinyConfig(Architecture::kQwen2);
  ParameterBuffer master = RandomMaster(config, 8);
  const Tensor down = master.view(master.layout().layers()[1].down);
  for (int64_t i = 0; i < down.elements(); ++i) down.as<float>()[i] *= 4e4f;
  const auto weights = WeightsFrom(config, master, DType::kFloat16);
  const Sequences sequences = RandomSequences(config, {30}, 9);
  EXPECT_GT(Train(*weights, {}, {sequences}, Recompute::kNone).saturated, 0);
  EXPECT_EQ(
      Train(*weights, {.residual = true, .head = false}, {sequences}, Recompute::kNone).saturated,
      0);
}

TEST(Fp32PartsMemoryTest, ActivationsTakeWhatBytesSays) {
  const ModelConfig config = TinyConfig(Architecture::kQwen3);
  const auto weights = WeightsFrom(config, RandomMaster(config, 8), DType::kFloat16);
  PackedBatch batch = Pack(RandomSequences(config, {30, 5}, 9));
  batch.logit_rows.resize(11);
  batch.targets.resize(11);
  for (const Recompute recompute : {Recompute::kNone, Recompute::kLayer}) {
    TestContext ctx;
    TrainActivations activations;
    OwnedTensor hidden("hidden", DType::kFloat16, {11, config.hidden_size}, kTestDevice);
    Transformer(config, {.residual = true, .head = false})
        .ForwardTrain(ctx, *weights, batch, recompute, &activations, hidden);
    size_t held = 0;
    for (const MemoryUse& use : MemoryReport()) held += use.name == "activations" ? use.bytes : 0;
    const auto bytes = [&](DType residual) {
      return TrainActivations::Bytes(config, {DType::kFloat16, residual}, 35, 11, recompute);
    };
    EXPECT_EQ(held, bytes(DType::kFloat32));
    EXPECT_GT(held, bytes(DType::kFloat16));
  }
}

}  // namespace
}  // namespace halfstep
