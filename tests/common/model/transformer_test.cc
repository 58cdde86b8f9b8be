// SPDX-License-Identifier: Apache-2.0
// The transformer: training and inference give the same bits however the work is cut; gradients are
// those of the function that is computed.
#include "common/model/transformer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <tuple>
#include <vector>

#include "kernels/ops/attention.h"
#include "tests/common/model/tiny_model.h"

namespace halfstep {
namespace {

std::string RowName(int64_t row) { return "row " + std::to_string(row); }

void ExpectEqualBytes(ConstTensor a, ConstTensor b, const std::string& what) {
  ASSERT_EQ(a.bytes(), b.bytes()) << what;
  if (std::memcmp(a.data(), b.data(), a.bytes()) == 0) return;
  const auto* x = static_cast<const char*>(a.data());
  const auto* y = static_cast<const char*>(b.data());
  const size_t at = std::mismatch(x, x + a.bytes(), y).first - x;
  ADD_FAILURE() << what << ": first difference at element " << at / SizeOf(a.dtype());
}

struct Gradients {
  OwnedTensor hidden;
  std::unique_ptr<ModelGradients> parameters;
  ConstTensor flat;
  int64_t saturated = 0;  // FP16 forward stores beyond the largest value
};

// Forward and backward over `parts` as micro-batches; the gradient of row r of the whole is row r
// of `dhidden`.
Gradients Train(const ModelWeights& weights, const std::vector<Sequences>& parts,
                ConstTensor dhidden, Recompute recompute, int threads = 1) {
  const ModelConfig& config = weights.config();
  TestContext ctx(threads);
  const Transformer transformer(config);
  TrainActivations activations;
  Gradients out;
  out.hidden = OwnedTensor("hidden", weights.dtype(), dhidden.shape(), kTestDevice);
  out.parameters =
      std::make_unique<ModelGradients>(weights.parameters().shared_layout(), kTestDevice);
  int64_t row = 0;
  for (const Sequences& part : parts) {
    const PackedBatch batch = Pack(part);
    const auto rows = static_cast<int64_t>(batch.tokens.size());
    transformer.ForwardTrain(ctx, weights, batch, recompute, &activations,
                             out.hidden.view().Rows(row, rows));
    transformer.Backward(ctx, weights, batch, activations, dhidden.Rows(row, rows),
                         out.parameters.get());
    row += rows;
  }
  out.flat = out.parameters->Finish(ctx).flat();
  out.saturated = ctx.saturated();
  return out;
}

using Case = std::tuple<Architecture, DType>;

class TransformerTest : public ::testing::TestWithParam<Case> {
 protected:
  TransformerTest()
      : config_(TinyConfig(std::get<0>(GetParam()))),
        dtype_(std::get<1>(GetParam())),
        master_(RandomMaster(config_, 3)),
        weights_(WeightsFrom(config_, master_, dtype_)) {}

  OwnedTensor TrainHidden(const ModelWeights& weights, const PackedBatch& batch, int threads = 1) {
    TestContext ctx(threads);
    TrainActivations activations;
    OwnedTensor hidden("hidden", dtype_,
                       {static_cast<int64_t>(batch.logit_rows.size()), config_.hidden_size},
                       kTestDevice);
    Transformer(config_).ForwardTrain(ctx, weights, batch, Recompute::kNone, &activations, hidden);
    return hidden;
  }

  ModelConfig config_;
  DType dtype_;
  ParameterBuffer master_;
  std::unique_ptr<ModelWeights> weights_;
};

std::string CaseName(const ::testing::TestParamInfo<Case>& info) {
  static constexpr const char* kNames[] = {"Llama", "Qwen2", "Qwen3"};
  return std::string(kNames[static_cast<int>(std::get<0>(info.param))]) + "_" +
         Name(std::get<1>(info.param));
}

// Every pair on the CPU; emulated, which is slow, each architecture and each dtype at least once.
std::vector<Case> Cases() {
  if (kEmulated) {
    return {{Architecture::kQwen3, DType::kFloat16},
            {Architecture::kLlama, DType::kBFloat16},
            {Architecture::kQwen2, DType::kFloat32}};
  }
  std::vector<Case> cases;
  for (const auto architecture :
       {Architecture::kLlama, Architecture::kQwen2, Architecture::kQwen3}) {
    for (const auto dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
      cases.emplace_back(architecture, dtype);
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Models, TransformerTest, ::testing::ValuesIn(Cases()), CaseName);

// Runs sequences through the paged cache in random steps: random subsets, chunk sizes and logit
// rows, over blocks in random order. Each hidden row must equal the row of `expected` that training
// gave.
void CheckInference(const ModelWeights& weights, const Sequences& sequences, ConstTensor expected,
                    int threads, uint64_t seed) {
  const ModelConfig& config = weights.config();
  std::mt19937_64 random(seed);
  TestContext ctx(threads);
  std::vector<int64_t> first_row(sequences.size());
  std::vector<std::vector<int32_t>> tables(sequences.size());
  int64_t rows = 0, max_blocks = 0, blocks = 0;
  for (size_t s = 0; s < sequences.size(); ++s) {
    first_row[s] = rows;
    rows += static_cast<int64_t>(sequences[s].size());
    const int64_t needed =
        (static_cast<int64_t>(sequences[s].size()) + kKvBlockTokens - 1) / kKvBlockTokens;
    tables[s].resize(needed);
    blocks += needed;
    max_blocks = std::max(max_blocks, needed);
  }
  std::vector<int32_t> free(blocks + 3);
  std::iota(free.begin(), free.end(), 0);
  std::shuffle(free.begin(), free.end(), random);
  for (auto& table : tables) {
    for (int32_t& block : table) {
      block = free.back();
      free.pop_back();
    }
  }
  KvCache cache(config, weights.dtype(), blocks + 3, kTestDevice);
  std::vector<size_t> done(sequences.size());
  while (true) {
    StepBatch step;
    step.max_blocks = max_blocks;
    step.query_start.push_back(0);
    std::vector<int64_t> expected_rows;
    std::vector<size_t> order(sequences.size());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    for (const size_t s : order) {
      const size_t left = sequences[s].size() - done[s];
      if (left == 0 || random() % 3 == 0) continue;
      const size_t count = random() % 2 ? 1 : 1 + random() % std::min<size_t>(left, 40);
      for (size_t i = 0; i < std::min(count, left); ++i, ++done[s]) {
        const auto position = static_cast<int32_t>(done[s]);
        if (random() % 3 != 0) {
          step.logit_rows.push_back(static_cast<int32_t>(step.tokens.size()));
          expected_rows.push_back(first_row[s] + position);
        }
        step.tokens.push_back(sequences[s][done[s]]);
        step.positions.push_back(position);
        step.slots.push_back(tables[s][position / kKvBlockTokens] *
                                 static_cast<int32_t>(kKvBlockTokens) +
                             position % static_cast<int32_t>(kKvBlockTokens));
      }
      step.query_start.push_back(static_cast<int32_t>(step.tokens.size()));
      step.context.push_back(static_cast<int32_t>(done[s]));
      std::vector<int32_t> table = tables[s];
      table.resize(max_blocks, -1);
      step.block_tables.insert(step.block_tables.end(), table.begin(), table.end());
    }
    if (!step.tokens.empty()) {
      OwnedTensor hidden("hidden", weights.dtype(),
                         {static_cast<int64_t>(step.logit_rows.size()), config.hidden_size},
                         kTestDevice);
      Transformer(config).ForwardInfer(ctx, weights, step, &cache, hidden);
      for (size_t i = 0; i < expected_rows.size(); ++i) {
        ExpectEqualBytes(hidden.view().Rows(static_cast<int64_t>(i), 1),
                         expected.Rows(expected_rows[i], 1), RowName(expected_rows[i]));
      }
    }
    bool finished = true;
    for (size_t s = 0; s < sequences.size(); ++s) finished &= done[s] == sequences[s].size();
    if (finished) break;
  }
}

TEST_P(TransformerTest, InferenceGivesTheBitsOfTrainingHoweverItIsCut) {
  const Sequences sequences = RandomSequences(config_, {1, 33, 70, 5, 64, 32, 100, 17}, 11);
  const OwnedTensor hidden = TrainHidden(*weights_, Pack(sequences));
  for (uint64_t seed = 0; seed < 4; ++seed) {
    CheckInference(*weights_, sequences, hidden, 1 + static_cast<int>(seed % 3), seed);
  }
}

TEST_P(TransformerTest, TrainingRowsDoNotDependOnTheirBatchOrThreads) {
  const Sequences sequences = RandomSequences(config_, {40, 7, 65}, 12);
  const OwnedTensor together = TrainHidden(*weights_, Pack(sequences), 3);
  int64_t row = 0;
  for (const auto& sequence : sequences) {
    const OwnedTensor alone = TrainHidden(*weights_, Pack({sequence}));
    const auto rows = static_cast<int64_t>(sequence.size());
    ExpectEqualBytes(together.view().Rows(row, rows), alone, RowName(row));
    row += rows;
  }
}

TEST_P(TransformerTest, FewerLogitRowsChangeNoBit) {
  const Sequences sequences = RandomSequences(config_, {40, 7, 65}, 13);
  PackedBatch batch = Pack(sequences);
  const OwnedTensor all = TrainHidden(*weights_, batch);
  batch.logit_rows = {3, 4, 39, 40, 110};
  batch.targets.resize(5);
  const OwnedTensor some = TrainHidden(*weights_, batch);
  for (size_t i = 0; i < batch.logit_rows.size(); ++i) {
    ExpectEqualBytes(some.view().Rows(static_cast<int64_t>(i), 1),
                     all.view().Rows(batch.logit_rows[i], 1), RowName(batch.logit_rows[i]));
  }
}

// Gradients of a batch whose unscored rows are left out equal those where they are there with
// gradient 0.
TEST_P(TransformerTest, UnscoredRowsContributeNothingToGradients) {
  const Sequences sequences = RandomSequences(config_, {20, 37}, 14);
  PackedBatch batch = Pack(sequences);
  const std::vector<int32_t> kept = {0, 5, 6, 19, 30, 56};
  const OwnedTensor few =
      RandomTensor(dtype_, {static_cast<int64_t>(kept.size()), config_.hidden_size}, 1.0f, 5);
  OwnedTensor padded("padded", dtype_, {57, config_.hidden_size}, kTestDevice);
  for (size_t i = 0; i < kept.size(); ++i) {
    const ConstTensor row = few.view().Rows(static_cast<int64_t>(i), 1);
    std::memcpy(padded.view().Rows(kept[i], 1).data(), row.data(), row.bytes());
  }
  const Gradients whole = Train(*weights_, {sequences}, padded, Recompute::kNone);

  TestContext ctx;
  batch.logit_rows = kept;
  batch.targets.resize(kept.size());
  TrainActivations activations;
  OwnedTensor hidden("hidden", dtype_, few.view().shape(), kTestDevice);
  ModelGradients gradients(master_.shared_layout(), kTestDevice);
  const Transformer transformer(config_);
  transformer.ForwardTrain(ctx, *weights_, batch, Recompute::kNone, &activations, hidden);
  transformer.Backward(ctx, *weights_, batch, activations, few, &gradients);
  const ConstTensor flat = gradients.Finish(ctx).flat();
  // On CUDA rows are added in groups of 16, which rows of zeros move apart.
  const double slack = kEmulated ? 1e-5 : 0;
  for (int64_t i = 0; i < flat.elements(); ++i) {
    const float want = whole.flat.as<float>()[i];
    ASSERT_NEAR(flat.as<float>()[i], want, slack * (1 + std::abs(want))) << "element " << i;
  }
}

TEST_P(TransformerTest, RecomputedActivationsGiveTheSameBits) {
  const Sequences sequences = RandomSequences(config_, {40, 7, 65}, 15);
  const OwnedTensor dhidden = RandomTensor(dtype_, {112, config_.hidden_size}, 0.1f, 6);
  const Gradients kept = Train(*weights_, {sequences}, dhidden, Recompute::kNone);
  const Gradients recomputed = Train(*weights_, {sequences}, dhidden, Recompute::kLayer);
  ExpectEqualBytes(kept.hidden, recomputed.hidden, "hidden");
  ExpectEqualBytes(kept.flat, recomputed.flat, "gradients");
}

TEST_P(TransformerTest, MicroBatchesAndThreadsChangeNoBitOfTheGradients) {
  const Sequences s = RandomSequences(config_, kSplitLengths, 16);
  const int64_t tokens = std::accumulate(kSplitLengths.begin(), kSplitLengths.end(), int64_t{0});
  const OwnedTensor dhidden = RandomTensor(dtype_, {tokens, config_.hidden_size}, 0.1f, 7);
  const Gradients whole = Train(*weights_, {s}, dhidden, Recompute::kNone);
  const Gradients split =
      Train(*weights_, {{s[0]}, {s[1], s[2]}, {s[3]}, {s[4]}}, dhidden, Recompute::kNone, 3);
  ExpectEqualBytes(whole.flat, split.flat, "gradients");
}

// The comparison can fail: the same function with the MLP's neurons in another order sums them in
// another order, which must show.
TEST_P(TransformerTest, AnotherOrderOfSummationShowsInTheBits) {
  ParameterBuffer permuted(master_.shared_layout(), DType::kFloat32, "permuted", kTestDevice);
  std::memcpy(permuted.flat().data(), master_.flat().data(), master_.flat().bytes());
  const int64_t width = config_.intermediate_size;
  const int64_t hidden = config_.hidden_size;
  const auto reversed = [&](int64_t j) { return width - 1 - j; };
  for (const LayerParameters& layer : master_.layout().layers()) {
    for (const int64_t half : {int64_t{0}, width}) {
      for (int64_t j = 0; j < width; ++j) {
        std::memcpy(permuted.view(layer.gate_up).Rows(half + reversed(j), 1).data(),
                    master_.view(layer.gate_up).Rows(half + j, 1).data(), hidden * sizeof(float));
        if (layer.gate_up_bias >= 0) {
          permuted.view(layer.gate_up_bias).as<float>()[half + reversed(j)] =
              master_.view(layer.gate_up_bias).as<float>()[half + j];
        }
      }
    }
    for (int64_t i = 0; i < hidden; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        permuted.view(layer.down).as<float>()[i * width + reversed(j)] =
            master_.view(layer.down).as<float>()[i * width + j];
      }
    }
  }
  // Rounding to 16 bits hides most of the differences, so many rows are needed to see some.
  const PackedBatch batch =
      Pack(RandomSequences(config_, std::vector<int>(12, static_cast<int>(Many(200, 100))), 17));
  const OwnedTensor a = TrainHidden(*weights_, batch, 2);
  const OwnedTensor b = TrainHidden(*WeightsFrom(config_, permuted, dtype_), batch, 2);
  EXPECT_NE(std::memcmp(a.view().data(), b.view().data(), a.view().bytes()), 0);

  TestContext ctx;
  OwnedTensor wide_a("a", DType::kFloat32, a.view().shape(), kTestDevice);
  OwnedTensor wide_b("b", DType::kFloat32, a.view().shape(), kTestDevice);
  Cast(ctx, a, Overflow::kSaturate, wide_a);
  Cast(ctx, b, Overflow::kSaturate, wide_b);
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < wide_a.view().elements(); ++i) {
    const double x = wide_a.view().as<float>()[i], y = wide_b.view().as<float>()[i];
    difference += (x - y) * (x - y);
    norm += x * x;
  }
  EXPECT_LT(std::sqrt(difference / norm), 0.1);
}

TEST(TrainActivationsTest, TakeWhatBytesSays) {
  for (const Architecture architecture : {Architecture::kLlama, Architecture::kQwen3}) {
    const ModelConfig config = TinyConfig(architecture);
    const auto weights = WeightsFrom(config, RandomMaster(config, 8), DType::kFloat16);
    PackedBatch batch = Pack(RandomSequences(config, {30, 5}, 9));
    batch.logit_rows.resize(11);
    batch.targets.resize(11);
    for (const Recompute recompute : {Recompute::kNone, Recompute::kLayer}) {
      TestContext ctx;
      TrainActivations activations;
      OwnedTensor hidden("hidden", DType::kFloat16, {11, config.hidden_size}, kTestDevice);
      Transformer(config).ForwardTrain(ctx, *weights, batch, recompute, &activations, hidden);
      size_t held = 0;
      for (const MemoryUse& use : MemoryReport()) held += use.name == "activations" ? use.bytes : 0;
      EXPECT_EQ(held, TrainActivations::Bytes(config, {DType::kFloat16, DType::kFloat16}, 35, 11,
                                              recompute));
    }
  }
}

TEST(TransformerOverflowTest, TheBackwardCountsNoSaturatedStores) {
  const ModelConfig config = TinyConfig(Architecture::kQwen2);
  ParameterBuffer master = RandomMaster(config, 8);
  const Tensor gate_up = master.view(master.layout().layers()[1].gate_up);
  for (int64_t i = 0; i < gate_up.elements(); ++i) gate_up.as<float>()[i] *= 3e5f;
  const auto weights = WeightsFrom(config, master, DType::kFloat16);
  const Sequences sequences = RandomSequences(config, {30}, 9);
  const OwnedTensor dhidden = RandomTensor(DType::kFloat16, {30, config.hidden_size}, 0.1f, 10);
  const Gradients kept = Train(*weights, {sequences}, dhidden, Recompute::kNone);
  const Gradients recomputed = Train(*weights, {sequences}, dhidden, Recompute::kLayer);

  TestContext forward_ctx;
  TrainActivations activations;
  OwnedTensor hidden("hidden", DType::kFloat16, dhidden.view().shape(), kTestDevice);
  Transformer(config).ForwardTrain(forward_ctx, *weights, Pack(sequences), Recompute::kNone,
                                   &activations, hidden);
  EXPECT_GT(forward_ctx.saturated(), 0);
  EXPECT_EQ(kept.saturated, forward_ctx.saturated());
  EXPECT_EQ(recomputed.saturated, forward_ctx.saturated());
}

// sum(dhidden * hidden) along random directions of each parameter, central differences against
// gradients.
TEST(TransformerGradientTest, MatchesFiniteDifferences) {
  if (kEmulated) GTEST_SKIP() << "minutes; GoldenModelTest compares every gradient";
  for (const Architecture architecture :
       {Architecture::kLlama, Architecture::kQwen2, Architecture::kQwen3}) {
    const ModelConfig config = TinyConfig(architecture);
    ParameterBuffer master = RandomMaster(config, 21);
    const Sequences sequences = RandomSequences(config, {9, 36}, 22);
    const OwnedTensor dhidden = RandomTensor(DType::kFloat32, {45, config.hidden_size}, 1.0f, 23);
    const auto loss = [&] {
      const auto weights = WeightsFrom(config, master, DType::kFloat32);
      TestContext ctx;
      TrainActivations activations;
      OwnedTensor hidden("hidden", DType::kFloat32, dhidden.view().shape(), kTestDevice);
      Transformer(config).ForwardTrain(ctx, *weights, Pack(sequences), Recompute::kNone,
                                       &activations, hidden);
      double sum = 0;
      for (int64_t i = 0; i < hidden.view().elements(); ++i) {
        sum += static_cast<double>(hidden.view().as<float>()[i]) *
               static_cast<double>(dhidden.view().as<float>()[i]);
      }
      return sum;
    };
    const Gradients gradients = Train(*WeightsFrom(config, master, DType::kFloat32), {sequences},
                                      dhidden, Recompute::kNone);
    const auto& specs = master.layout().specs();
    for (size_t p = 0; p < specs.size(); ++p) {
      const Tensor parameter = master.view(static_cast<int>(p));
      const Tensor gradient = gradients.parameters->view(static_cast<int>(p));
      const int64_t n = parameter.elements();
      const OwnedTensor direction = RandomTensor(DType::kFloat32, {n}, 1.0f, 100 + p);
      const std::vector<float> saved(parameter.as<float>(), parameter.as<float>() + n);
      double slope = 0, gradient_norm = 0;
      for (int64_t i = 0; i < n; ++i) {
        slope += static_cast<double>(direction.view().as<float>()[i]) * gradient.as<float>()[i];
        gradient_norm += static_cast<double>(gradient.as<float>()[i]) * gradient.as<float>()[i];
      }
      const float step = 2e-3f / std::sqrt(static_cast<float>(n));
      const auto shifted = [&](float by) {
        for (int64_t i = 0; i < n; ++i) {
          parameter.as<float>()[i] = saved[i] + by * direction.view().as<float>()[i];
        }
        return loss();
      };
      const double numeric = (shifted(step) - shifted(-step)) / (2.0 * step);
      std::copy(saved.begin(), saved.end(), parameter.as<float>());
      EXPECT_NEAR(slope, numeric, 0.02 * std::sqrt(gradient_norm) + 1e-3) << specs[p].name;
    }
  }
}

TEST(TransformerCacheTest, EmptyLogitRowsOnlyFillTheCache) {
  const ModelConfig config = TinyConfig(Architecture::kQwen3);
  const auto weights = WeightsFrom(config, RandomMaster(config, 1), DType::kFloat16);
  TestContext ctx;
  KvCache cache(config, DType::kFloat16, 1, kTestDevice);
  StepBatch step;
  step.tokens = {1, 2, 3};
  step.positions = {0, 1, 2};
  step.slots = {0, 1, 2};
  step.query_start = {0, 3};
  step.context = {3};
  step.block_tables = {0};
  step.max_blocks = 1;
  OwnedTensor none("none", DType::kFloat16, {0, config.hidden_size}, kTestDevice);
  Transformer(config).ForwardInfer(ctx, *weights, step, &cache, none);

  step.tokens = {4};
  step.positions = {3};
  step.slots = {3};
  step.query_start = {0, 1};
  step.context = {4};
  step.logit_rows = {0};
  OwnedTensor hidden("hidden", DType::kFloat16, {1, config.hidden_size}, kTestDevice);
  Transformer(config).ForwardInfer(ctx, *weights, step, &cache, hidden);
  TrainActivations activations;
  OwnedTensor expected("expected", DType::kFloat16, {4, config.hidden_size}, kTestDevice);
  Transformer(config).ForwardTrain(ctx, *weights, Pack({{1, 2, 3, 4}}), Recompute::kNone,
                                   &activations, expected);
  ExpectEqualBytes(hidden, expected.view().Rows(3, 1), "row 3");
}

// Hidden states of one sequence, from one prefill of its first half and then token by token.
OwnedTensor Decode(const ModelWeights& weights, const std::vector<int32_t>& sequence,
                   Profile profile) {
  const ModelConfig& config = weights.config();
  const TestContext ctx(1, profile);
  const auto count = static_cast<int64_t>(sequence.size());
  const int64_t blocks = (count + kKvBlockTokens - 1) / kKvBlockTokens;
  KvCache cache(config, weights.dtype(), blocks, kTestDevice);
  OwnedTensor hidden("hidden", weights.dtype(), {count, config.hidden_size}, kTestDevice);
  for (int64_t done = 0; done < count;) {
    const int64_t rows = done == 0 ? count / 2 : 1;
    StepBatch step;
    step.max_blocks = blocks;
    for (int64_t i = 0; i < rows; ++i) {
      const auto position = static_cast<int32_t>(done + i);
      step.logit_rows.push_back(static_cast<int32_t>(i));
      step.tokens.push_back(sequence[static_cast<size_t>(position)]);
      step.positions.push_back(position);
      step.slots.push_back(position);
    }
    step.query_start = {0, static_cast<int32_t>(rows)};
    step.context = {static_cast<int32_t>(done + rows)};
    for (int32_t block = 0; block < blocks; ++block) step.block_tables.push_back(block);
    Transformer(config).ForwardInfer(ctx, weights, step, &cache, hidden.view().Rows(done, rows));
    done += rows;
  }
  return hidden;
}

double Distance(ConstTensor a, const OwnedTensor& exact) {
  double square = 0, norm = 0;
  for (int64_t i = 0; i < a.elements(); ++i) {
    const double want = exact.view().as<float>()[i];
    const double got = a.dtype() == DType::kFloat16    ? ToFloat(a.as<Float16>()[i])
                       : a.dtype() == DType::kBFloat16 ? ToFloat(a.as<BFloat16>()[i])
                                                       : a.as<float>()[i];
    square += (got - want) * (got - want);
    norm += want * want;
  }
  return std::sqrt(square / norm);
}

// Against the training engine in FP32 with the same (rounded) weights.
TEST_P(TransformerTest, TheFastEngineIsAnotherEngineAndNoWorse) {
  const Sequences sequences = RandomSequences(config_, {90}, 31);
  ParameterBuffer rounded(weights_->parameters().shared_layout(), DType::kFloat32, "rounded",
                          kTestDevice);
  Cast(TestContext(), std::as_const(*weights_).parameters().flat(), Overflow::kInfinity,
       rounded.flat());
  const auto exact_weights = WeightsFrom(config_, rounded, DType::kFloat32);
  const OwnedTensor exact = Decode(*exact_weights, sequences[0], Profile::kBitwise);
  const OwnedTensor bitwise = Decode(*weights_, sequences[0], Profile::kBitwise);
  const OwnedTensor fast = Decode(*weights_, sequences[0], Profile::kFast);
  // In FP32 there is no rounding to leave out, and CUDA splits only longer contexts.
  if (!kEmulated || dtype_ != DType::kFloat32) {
    EXPECT_NE(std::memcmp(fast.view().data(), bitwise.view().data(), fast.view().bytes()), 0);
  }
  if (dtype_ == DType::kFloat32) {
    EXPECT_LT(Distance(fast.view(), exact), 1e-5);
  } else {
    EXPECT_LT(Distance(fast.view(), exact), Distance(bitwise.view(), exact));
    EXPECT_GT(Distance(fast.view(), exact), 0);
  }
}

TEST(TransformerMemoryTest, SteadyStateAllocatesNothing) {
  const ModelConfig config = TinyConfig(Architecture::kQwen3);
  const auto weights = WeightsFrom(config, RandomMaster(config, 1), DType::kFloat16);
  TestContext ctx;
  TrainActivations activations;
  ModelGradients gradients(weights->parameters().shared_layout(), kTestDevice);
  const Transformer transformer(config);
  const auto total = [] {
    size_t bytes = 0;
    for (const MemoryUse& use : MemoryReport()) bytes += use.bytes;
    return bytes;
  };
  size_t after_first = 0;
  for (const int length : {60, 20, 60}) {
    const PackedBatch batch = Pack(RandomSequences(config, {length}, 2));
    OwnedTensor hidden("hidden", DType::kFloat16, {60, config.hidden_size}, kTestDevice);
    transformer.ForwardTrain(ctx, *weights, batch, Recompute::kNone, &activations,
                             hidden.view().Rows(0, length));
    transformer.Backward(ctx, *weights, batch, activations, hidden.view().Rows(0, length),
                         &gradients);
    if (after_first == 0) after_first = total();
    EXPECT_EQ(total(), after_first);
  }
}

}  // namespace
}  // namespace halfstep
