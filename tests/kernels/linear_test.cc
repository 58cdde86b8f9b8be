// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_target.h"
#include "kernels/reference/linear.h"
#include "tests/kernels/op_test.h"

namespace halfstep {
namespace {

using test::AsDouble;
using test::Close;
using test::kRealDTypes;
using test::SameBits;
using test::TestContext;
using test::Zeros;

struct Dims {
  int64_t tokens, in, out;
};

std::string CaseName(const Dims& dims, DType dtype) {
  return std::string(Name(dtype)) + " tokens " + std::to_string(dims.tokens) + " in " +
         std::to_string(dims.in) + " out " + std::to_string(dims.out);
}

// Sizes around the widths of lanes, panels and tiles, and none at all.
std::vector<Dims> OddDims() {
  std::vector<Dims> cases;
  for (const int64_t tokens : {0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15, 16, 17, 29, 64, 65}) {
    cases.push_back({tokens, 33, 47});
  }
  for (const int64_t inner : {0, 1, 15, 16, 17, 63, 64, 65, 300}) cases.push_back({9, inner, 20});
  for (const int64_t out : {1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 150, 300}) {
    cases.push_back({5, 24, out});
    cases.push_back({1, 40, out});
    cases.push_back({31, 24, out});
  }
  cases.push_back({Many(300, 130), 65, 70});
  cases.push_back({33, Many(2100, 600), 40});
  cases.push_back({Many(600, 70), 20, Many(600, 270)});
  return cases;
}

// A weight with its packed copy.
struct Weight {
  OwnedTensor plain, packed, bias;
  LinearWeight view(bool with_bias = true) const {
    return {plain.view(), packed.view(), with_bias ? bias.view() : ConstTensor()};
  }
};

Weight MakeWeight(const ExecContext& ctx, test::Random& random, DType dtype, const Dims& dims) {
  Weight w;
  w.plain = random.Normal(dtype, {dims.out, dims.in}, 0.2);
  w.bias = random.Normal(dtype, {dims.out}, 0.5);
  const auto bytes = PackedLinearBytes(ctx.device, dtype, dims.out, dims.in);
  w.packed = Zeros(DType::kUInt8, {static_cast<int64_t>(bytes)});
  PackLinear(ctx, std::as_const(w.plain).view(), w.packed);
  return w;
}

// The relative L2 of one rounding averages below the tolerance; a few elements may lie at its
// bound.
double Tolerance(DType dtype, int64_t elements) {
  const double roundoff = tolerance::PerDType(dtype, 0x1p-11, 0);
  return std::max(tolerance::Gemm(dtype), elements < 512 ? roundoff : 0);
}

class LinearTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { SetCpuTargetForTest(GetParam()); }
  void TearDown() override { SetCpuTargetForTest(""); }
};

TEST_P(LinearTest, ForwardMatchesTheReference) {
  TestContext ctx(2);
  test::Random random(1);
  for (const DType dtype : kRealDTypes) {
    for (const Dims& dims : OddDims()) {
      const OwnedTensor x = random.Normal(dtype, {dims.tokens, dims.in});
      const Weight w = MakeWeight(ctx, random, dtype, dims);
      for (const bool bias : {false, true}) {
        OwnedTensor want = Zeros(DType::kFloat64, {dims.tokens, dims.out});
        reference::Linear(AsDouble(x), AsDouble(w.plain),
                          bias ? ConstTensor(AsDouble(w.bias)) : ConstTensor(), want);
        for (const DType out : {dtype, DType::kFloat32}) {
          OwnedTensor y = Zeros(out, {dims.tokens, dims.out});
          Linear(ctx, x, w.view(bias), y);
          EXPECT_TRUE(Close(y, want, Tolerance(out, y.view().elements()), CaseName(dims, dtype)));
        }
      }
    }
  }
}

TEST_P(LinearTest, ForwardOfTheFastProfileMatchesTheReference) {
  for (const DType dtype : kRealDTypes) {
    for (const int threads : {1, 3}) {
      const TestContext ctx(threads, Profile::kFast);
      for (const Dims& dims : OddDims()) {
        if (dims.tokens > 8 || (kEmulated && threads > 1)) continue;
        test::Random random(4);
        const Weight w = MakeWeight(ctx, random, dtype, dims);
        const OwnedTensor x = random.Normal(dtype, {dims.tokens, dims.in});
        OwnedTensor y = Zeros(DType::kFloat32, {dims.tokens, dims.out});
        Linear(ctx, x, w.view(), y);
        OwnedTensor want = Zeros(DType::kFloat64, {dims.tokens, dims.out});
        reference::Linear(AsDouble(x), AsDouble(w.plain), AsDouble(w.bias), want);
        EXPECT_TRUE(Close(y, want, tolerance::Gemm(DType::kFloat32), CaseName(dims, dtype)));
      }
    }
  }
}

// Few rows split the inner index: another order of summation shows in the bits. In FP32 only the
// CPU does so.
TEST_P(LinearTest, TheFastProfileSplitsTheInnerIndexOfFewRows) {
  const TestContext fast(1, Profile::kFast), bitwise;
  for (const int64_t tokens : {1, 2, 3, 20}) {
    const Dims dims{tokens, 301, 96};
    test::Random random(5);
    const Weight w = MakeWeight(bitwise, random, DType::kFloat32, dims);
    const OwnedTensor x = random.Normal(DType::kFloat32, {dims.tokens, dims.in});
    OwnedTensor y = Zeros(DType::kFloat32, {dims.tokens, dims.out});
    OwnedTensor other = Zeros(DType::kFloat32, {dims.tokens, dims.out});
    Linear(fast, x, w.view(), y);
    Linear(bitwise, x, w.view(), other);
    EXPECT_EQ(bool(SameBits(y, other, "y")), tokens == 20 || kEmulated) << tokens << " tokens";
  }
}

TEST_P(LinearTest, BackwardInputMatchesTheReference) {
  TestContext ctx(2);
  test::Random random(2);
  for (const DType dtype : kRealDTypes) {
    for (const Dims& dims : OddDims()) {
      const OwnedTensor dy = random.Normal(dtype, {dims.tokens, dims.out});
      const Weight w = MakeWeight(ctx, random, dtype, dims);
      OwnedTensor want = Zeros(DType::kFloat64, {dims.tokens, dims.in});
      reference::LinearBackwardInput(AsDouble(dy), AsDouble(w.plain), want);
      OwnedTensor dx = Zeros(dtype, {dims.tokens, dims.in});
      LinearBackwardInput(ctx, dy, w.view(), dx);
      EXPECT_TRUE(Close(dx, want, Tolerance(dtype, dx.view().elements()), CaseName(dims, dtype)));
    }
  }
}

TEST_P(LinearTest, BackwardWeightMatchesTheReferenceAndAccumulates) {
  TestContext ctx(2);
  test::Random random(3);
  for (const DType dtype : kRealDTypes) {
    for (const Dims& dims : OddDims()) {
      const OwnedTensor dy = random.Normal(dtype, {dims.tokens, dims.out});
      const OwnedTensor x = random.Normal(dtype, {dims.tokens, dims.in});
      OwnedTensor dweight = random.Normal(DType::kFloat32, {dims.out, dims.in});
      OwnedTensor dbias = random.Normal(DType::kFloat32, {dims.out});
      OwnedTensor want = AsDouble(dweight), want_bias = AsDouble(dbias);
      reference::LinearBackwardWeight(AsDouble(dy), AsDouble(x), want, want_bias);
      LinearBackwardWeight(ctx, dy, x, dweight, dbias);
      EXPECT_TRUE(Close(dweight, want, tolerance::kWeightGradient, CaseName(dims, dtype)));
      EXPECT_TRUE(Close(dbias, want_bias, tolerance::kWeightGradient, CaseName(dims, dtype)));
    }
  }
}

TEST(LinearReferenceTest, GradientsMatchFiniteDifferences) {
  test::Random random(4);
  const Shape tokens_in{4, 5}, tokens_out{4, 3}, out_in{3, 5};
  OwnedTensor x = random.Normal(DType::kFloat64, tokens_in);
  OwnedTensor weight = random.Normal(DType::kFloat64, out_in);
  OwnedTensor bias = random.Normal(DType::kFloat64, {3});
  const OwnedTensor dy = random.Normal(DType::kFloat64, tokens_out);
  const auto loss = [&] {
    OwnedTensor y = Zeros(DType::kFloat64, tokens_out);
    reference::Linear(x, weight, bias, y);
    return test::Inner(y, dy);
  };
  OwnedTensor dx = Zeros(DType::kFloat64, tokens_in);
  OwnedTensor dweight = Zeros(DType::kFloat64, out_in), dbias = Zeros(DType::kFloat64, {3});
  reference::LinearBackwardInput(dy, weight, dx);
  reference::LinearBackwardWeight(dy, x, dweight, dbias);
  EXPECT_TRUE(test::MatchesFiniteDifference(loss, x, dx, "dx"));
  EXPECT_TRUE(test::MatchesFiniteDifference(loss, weight, dweight, "dweight"));
  EXPECT_TRUE(test::MatchesFiniteDifference(loss, bias, dbias, "dbias"));
}

INSTANTIATE_TEST_SUITE_P(Targets, LinearTest, testing::ValuesIn(test::MachinesUnderTest()),
                         [](const auto& target) { return target.param; });

}  // namespace
}  // namespace halfstep
