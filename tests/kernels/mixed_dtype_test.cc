// SPDX-License-Identifier: Apache-2.0
// Operations whose tensors are FP32 beside 16-bit weights, as models with FP32 parts run them:
// against the specification, and the same bits on every machine.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "kernels/ops/embedding.h"
#include "kernels/ops/fused.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/log_prob.h"
#include "kernels/ops/norm.h"
#include "kernels/reference/linear.h"
#include "kernels/reference/log_prob.h"
#include "kernels/reference/norm.h"
#include "tests/kernels/op_test.h"

namespace halfstep {
namespace {

using test::AsDouble;
using test::Close;
using test::LoadDouble;
using test::Random;
using test::TestContext;
using test::Zeros;

constexpr float kEpsilon = 1e-6f;
constexpr DType kHalves[] = {DType::kFloat16, DType::kBFloat16};
constexpr DType kWide = DType::kFloat32;

std::string CaseName(std::initializer_list<DType> dtypes, int64_t rows, int64_t width) {
  std::string name;
  for (const DType dtype : dtypes) name += std::string(Name(dtype)) + " ";
  return name + std::to_string(rows) + " x " + std::to_string(width) + " ";
}

// Calls with every pair of FP32 and `half` of which one at least is FP32.
template <class F>
void ForPairs(DType half, F&& f) {
  f(kWide, half);
  f(half, kWide);
  f(kWide, kWide);
}

TEST(MixedNormTest, ForwardMatchesTheReference) {
  for (const DType half : kHalves) {
    ForPairs(half, [&](DType in, DType out) {
      for (const int64_t width : {1, 15, 16, 17, 80, 100}) {
        for (const int64_t rows : {0, 1, 45}) {
          Random random(1);
          const OwnedTensor x = random.Normal(in, {rows, width}, 2);
          const OwnedTensor weight = random.Normal(half, {width}, 0.3, 1);
          OwnedTensor y = Zeros(out, {rows, width}), want = Zeros(DType::kFloat64, {rows, width});
          OwnedTensor rstd = Zeros(kWide, {rows}), want_rstd = Zeros(DType::kFloat64, {rows});
          RmsNorm(TestContext(2), x, weight, kEpsilon, y, rstd);
          reference::RmsNorm(AsDouble(x), AsDouble(weight), kEpsilon, want, want_rstd);
          const std::string name = CaseName({in, half, out}, rows, width);
          const double slack = rows * width < 512 ? 1.6 : 1;
          EXPECT_TRUE(Close(y, want, slack * tolerance::RowOpForward(out), name + "y"));
          EXPECT_TRUE(Close(rstd, want_rstd, tolerance::kWeightGradient, name + "rstd"));
        }
      }
    });
  }
}

TEST(MixedNormTest, BackwardMatchesTheReference) {
  for (const DType half : kHalves) {
    ForPairs(half, [&](DType grad, DType in) {
      for (const int64_t width : {15, 16, 17, 80, 129}) {
        for (const int64_t rows : {1, 45}) {
          Random random(2);
          const OwnedTensor x = random.Normal(in, {rows, width}, 2);
          const OwnedTensor weight = random.Normal(half, {width}, 0.3, 1);
          const OwnedTensor dy = random.Normal(grad, {rows, width});
          OwnedTensor y = Zeros(half, {rows, width}), rstd = Zeros(kWide, {rows});
          RmsNorm(TestContext(), x, weight, kEpsilon, y, rstd);
          OwnedTensor dx = Zeros(in, {rows, width}), dweight = Zeros(kWide, {width});
          OwnedTensor want = Zeros(DType::kFloat64, {rows, width});
          OwnedTensor want_weight = Zeros(DType::kFloat64, {width});
          RmsNormBackward(TestContext(2), dy, x, weight, rstd, dx, dweight);
          reference::RmsNormBackward(AsDouble(dy), AsDouble(x), AsDouble(weight), kEpsilon, want,
                                     want_weight);
          const std::string name = CaseName({grad, in, half}, rows, width);
          const double slack = rows * width < 512 ? 1.6 : 1;
          EXPECT_TRUE(Close(dx, want, slack * tolerance::RowOpBackward(in), name + "dx"));
          EXPECT_TRUE(Close(dweight, want_weight, tolerance::kWeightGradient, name + "dweight"));
        }
      }
    });
  }
}

TEST(MixedAddNormTest, MatchesTheReference) {
  for (const DType half : kHalves) {
    ForPairs(half, [&](DType stream, DType out) {
      for (const int64_t width : {1, 15, 16, 17, 100}) {
        for (const int64_t rows : {1, 45}) {
          Random random(3);
          const OwnedTensor residual = random.Normal(stream, {rows, width}, 2);
          const OwnedTensor delta = random.Normal(kWide, {rows, width});
          const OwnedTensor weight = random.Normal(half, {width}, 0.3, 1);
          OwnedTensor sum = Zeros(stream, {rows, width}), y = Zeros(out, {rows, width});
          AddRmsNorm(TestContext(2), residual, delta, weight, kEpsilon, sum, y);
          OwnedTensor exact = AsDouble(residual), want = Zeros(DType::kFloat64, {rows, width});
          for (int64_t i = 0; i < rows * width; ++i) {
            test::StoreDouble(exact, i, LoadDouble(exact, i) + LoadDouble(delta, i));
          }
          reference::RmsNorm(exact, AsDouble(weight), kEpsilon, want, Tensor());
          const std::string name = CaseName({stream, half, out}, rows, width);
          const double slack = rows * width < 512 ? 1.6 : 1;
          EXPECT_TRUE(Close(sum, exact, slack * tolerance::RowOpForward(stream), name + "sum"));
          EXPECT_TRUE(Close(y, want, slack * tolerance::RowOpForward(out), name + "y"));
        }
      }
    });
  }
}

TEST(MixedAddNormTest, AnFp32StreamHoldsWhatFp16WouldSaturate) {
  const TestContext ctx;
  Random random(4);
  OwnedTensor residual = Zeros(kWide, {1, 20}), delta = Zeros(kWide, {1, 20});
  const OwnedTensor weight = random.Normal(DType::kFloat16, {20}, 0.3, 1);
  test::StoreDouble(residual, 3, 60000);
  test::StoreDouble(delta, 3, 20000);
  OwnedTensor sum = Zeros(kWide, {1, 20}), y = Zeros(DType::kFloat16, {1, 20});
  AddRmsNorm(ctx, residual, delta, weight, kEpsilon, sum, y);
  EXPECT_EQ(LoadDouble(sum, 3), 80000);
  EXPECT_EQ(ctx.saturated(), 0);
}

TEST(MixedEmbeddingTest, RowsEnterAnFp32StreamAsTheyAre) {
  for (const DType half : kHalves) {
    for (const int64_t width : {1, 16, 37}) {
      Random random(5);
      const OwnedTensor table = random.Normal(half, {50, width});
      const OwnedTensor tokens = random.Ids(100, 50);
      OwnedTensor y = Zeros(kWide, {100, width});
      Embedding(TestContext(2), tokens, table, y);
      for (int64_t i = 0; i < 100 * width; ++i) {
        const int64_t row = tokens.view().as<int32_t>()[i / width];
        ASSERT_EQ(LoadDouble(y, i), LoadDouble(table, row * width + i % width)) << Name(half);
      }
    }
  }
}

struct Dims {
  int64_t tokens, in, out;
};
constexpr Dims kDims[] = {{1, 33, 47}, {3, 40, 64}, {7, 16, 31}, {33, 65, 70}, {300, 24, 20}};

// A weight with its packed copy.
struct Weight {
  Weight(Random& random, DType dtype, const Dims& dims)
      : plain(random.Normal(dtype, {dims.out, dims.in}, 0.2)),
        packed(Zeros(DType::kUInt8, {static_cast<int64_t>(PackedLinearBytes(kTestDevice, dtype,
                                                                            dims.out, dims.in))})),
        bias(random.Normal(dtype, {dims.out}, 0.5)) {
    PackLinear(TestContext(), std::as_const(plain).view(), packed);
  }
  LinearWeight view() const { return {plain.view(), packed.view(), bias.view()}; }
  OwnedTensor plain, packed, bias;
};

class MixedLinearTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { SetCpuTargetForTest(GetParam()); }
  void TearDown() override { SetCpuTargetForTest(""); }
};

INSTANTIATE_TEST_SUITE_P(Targets, MixedLinearTest, testing::ValuesIn(CpuTargets()),
                         [](const auto& target) { return target.param; });

TEST_P(MixedLinearTest, ForwardMatchesTheReference) {
  for (const DType half : kHalves) {
    for (const Dims& dims : kDims) {
      for (const Profile profile : {Profile::kBitwise, Profile::kFast}) {
        Random random(6);
        const OwnedTensor x = random.Normal(kWide, {dims.tokens, dims.in});
        const Weight w(random, half, dims);
        OwnedTensor y = Zeros(kWide, {dims.tokens, dims.out});
        OwnedTensor want = Zeros(DType::kFloat64, {dims.tokens, dims.out});
        Linear(TestContext(2, profile), x, w.view(), y);
        reference::Linear(AsDouble(x), AsDouble(w.plain), AsDouble(w.bias), want);
        EXPECT_TRUE(Close(y, want, tolerance::Gemm(kWide), CaseName({half}, dims.tokens, dims.in)));
      }
    }
  }
}

TEST_P(MixedLinearTest, BackwardMatchesTheReference) {
  const TestContext ctx(2);
  for (const DType half : kHalves) {
    for (const Dims& dims : kDims) {
      Random random(7);
      const OwnedTensor dy = random.Normal(kWide, {dims.tokens, dims.out});
      const OwnedTensor x = random.Normal(half, {dims.tokens, dims.in});
      const Weight w(random, half, dims);
      const std::string name = CaseName({half}, dims.tokens, dims.in);
      OwnedTensor want = Zeros(DType::kFloat64, {dims.tokens, dims.in});
      reference::LinearBackwardInput(AsDouble(dy), AsDouble(w.plain), want);
      for (const DType out : {half, kWide}) {
        OwnedTensor dx = Zeros(out, {dims.tokens, dims.in});
        LinearBackwardInput(ctx, dy, w.view(), dx);
        const double roundoff = tolerance::PerDType(out, 0x1p-11, 2e-5);
        EXPECT_TRUE(Close(dx, want, roundoff, name + Name(out)));
      }
      OwnedTensor dweight = random.Normal(kWide, {dims.out, dims.in});
      OwnedTensor dbias = random.Normal(kWide, {dims.out});
      OwnedTensor want_weight = AsDouble(dweight), want_bias = AsDouble(dbias);
      LinearBackwardWeight(ctx, dy, x, dweight, dbias);
      reference::LinearBackwardWeight(AsDouble(dy), AsDouble(x), want_weight, want_bias);
      EXPECT_TRUE(Close(dweight, want_weight, tolerance::kWeightGradient, name + "dweight"));
      EXPECT_TRUE(Close(dbias, want_bias, tolerance::kWeightGradient, name + "dbias"));
    }
  }
}

TEST_P(MixedLinearTest, HeadOnFp32HiddenStatesMatchesTheReference) {
  const TestContext ctx(2);
  const float temperature = 0.8f;
  for (const DType half : kHalves) {
    for (const Dims& dims : {Dims{5, 33, 17}, Dims{70, 24, 65}, Dims{66, 8, 5000}}) {
      Random random(8);
      const OwnedTensor hidden = random.Normal(kWide, {dims.tokens, dims.in});
      const Weight head(random, half, dims);
      const LinearWeight view = {head.plain.view(), head.packed.view(), {}};
      const OwnedTensor targets = random.Ids(dims.tokens, static_cast<int32_t>(dims.out));
      const OwnedTensor dlog_probs = random.Normal(kWide, {dims.tokens}, 64);
      OwnedTensor log_probs = Zeros(kWide, {dims.tokens}), lse = Zeros(kWide, {dims.tokens});
      OwnedTensor dhidden = Zeros(kWide, {dims.tokens, dims.in});
      OwnedTensor dhead = random.Normal(kWide, {dims.out, dims.in});
      OwnedTensor want_dhead = AsDouble(dhead);
      LmHeadLogProb(ctx, hidden, view, targets, temperature, log_probs, Tensor(), lse);
      LmHeadLogProbBackward(ctx, dlog_probs, hidden, view, targets, temperature, lse, dhidden,
                            dhead);

      OwnedTensor logits = Zeros(DType::kFloat64, {dims.tokens, dims.out});
      OwnedTensor dlogits = Zeros(DType::kFloat64, {dims.tokens, dims.out});
      OwnedTensor want = Zeros(DType::kFloat64, {dims.tokens}), want_lse = AsDouble(want);
      OwnedTensor entropy = AsDouble(want);
      OwnedTensor want_dhidden = Zeros(DType::kFloat64, {dims.tokens, dims.in});
      reference::Linear(AsDouble(hidden), AsDouble(head.plain), {}, logits);
      reference::LogProb(logits, targets, temperature, want, entropy, want_lse);
      // No rounding of the gradient of the logits in between.
      reference::LogProbBackward(AsDouble(dlog_probs), logits, targets, temperature, dlogits);
      reference::LinearBackwardInput(dlogits, AsDouble(head.plain), want_dhidden);
      reference::LinearBackwardWeight(dlogits, AsDouble(hidden), want_dhead, {});
      const std::string name = CaseName({half}, dims.tokens, dims.out);
      EXPECT_TRUE(Close(log_probs, want, tolerance::kLogProb, name + "log-probs",
                        test::Distance::kAbsolute));
      EXPECT_TRUE(Close(dhidden, want_dhidden, tolerance::kWeightGradient, name + "dhidden"));
      EXPECT_TRUE(Close(dhead, want_dhead, tolerance::kWeightGradient, name + "dhead"));
    }
  }
}

TEST(MixedBitsTest, DoNotDependOnThreadsOrTarget) {
  for (const DType half : kHalves) {
    Random random(9);
    const Dims dims{500, 72, 90};
    const OwnedTensor x = random.Normal(kWide, {dims.tokens, dims.in}, 2);
    const OwnedTensor small = random.Normal(half, {dims.tokens, dims.in});
    const OwnedTensor norm = random.Normal(half, {dims.in}, 0.3, 1);
    const OwnedTensor dy = random.Normal(kWide, {dims.tokens, dims.out});
    const Weight w(random, half, dims);
    const OwnedTensor targets = random.Ids(dims.tokens, static_cast<int32_t>(dims.out));
    const OwnedTensor per_row = random.Normal(kWide, {dims.tokens});
    test::ExpectSameBitsOnEveryMachine(Name(half), [&](const ExecContext& ctx) {
      std::vector<OwnedTensor> out;
      const auto make = [&](DType dtype, Shape shape) {
        return out.emplace_back(Zeros(dtype, shape)).view();
      };
      const Shape in{dims.tokens, dims.in};
      const Tensor rstd = make(kWide, {dims.tokens});
      RmsNorm(ctx, x, norm, kEpsilon, make(half, in), rstd);
      RmsNormBackward(ctx, small, x, norm, rstd, make(kWide, in), make(kWide, {dims.in}));
      Linear(ctx, x, w.view(), make(kWide, {dims.tokens, dims.out}));
      LinearBackwardInput(ctx, dy, w.view(), make(half, in));
      LinearBackwardWeight(ctx, dy, small, make(kWide, {dims.out, dims.in}),
                           make(kWide, {dims.out}));
      LinearBackwardInput(ctx, dy, w.view(), make(kWide, in));
      // The head in FP32: the norm before it, and its log-probs with an entropy term.
      const Tensor hidden = make(kWide, in);
      const Tensor hidden_rstd = make(kWide, {dims.tokens});
      RmsNorm(ctx, small, norm, kEpsilon, hidden, hidden_rstd);
      RmsNormBackward(ctx, x, small, norm, hidden_rstd, make(half, in), make(kWide, {dims.in}));
      const Tensor entropy = make(kWide, {dims.tokens});
      const Tensor lse = make(kWide, {dims.tokens});
      LmHeadLogProb(ctx, hidden, w.view(), targets, 0.9f, make(kWide, {dims.tokens}), entropy, lse);
      LmHeadLogProbBackward(ctx, per_row, hidden, w.view(), targets, 0.9f, lse, make(kWide, in),
                            make(kWide, {dims.out, dims.in}),
                            {.weights = per_row, .entropy = entropy});
      return out;
    });
  }
}

}  // namespace
}  // namespace halfstep
