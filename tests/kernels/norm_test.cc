// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/norm.h"

#include <gtest/gtest.h>

#include "kernels/reference/norm.h"
#include "tests/kernels/op_test.h"

namespace halfstep {
namespace {

using test::As;
using test::AsDouble;
using test::Close;
using test::Random;
using test::SameBits;
using test::TestContext;
using test::Zeros;

constexpr float kEpsilon = 1e-6f;

struct Inputs {
  Inputs(DType dtype, int64_t rows, int64_t width, uint64_t seed = 1) {
    Random random(seed);
    x = random.Normal(dtype, {rows, width}, 2);
    weight = random.Normal(dtype, {width}, 0.3, 1);
    dy = random.Normal(dtype, {rows, width});
  }
  OwnedTensor x, weight, dy;
};

struct Outputs {
  Outputs(DType dtype, DType accumulator, int64_t rows, int64_t width)
      : y(Zeros(dtype, {rows, width})),
        rstd(Zeros(accumulator, {rows})),
        dx(Zeros(dtype, {rows, width})),
        dweight(Zeros(accumulator, {width})) {}
  OwnedTensor y, rstd, dx, dweight;
};

Outputs RunOps(const ExecContext& ctx, const Inputs& in, DType dtype) {
  Outputs out(dtype, DType::kFloat32, in.x.view().dim(0), in.x.view().dim(1));
  RmsNorm(ctx, in.x, in.weight, kEpsilon, out.y, out.rstd);
  RmsNormBackward(ctx, in.dy, in.x, in.weight, out.rstd, out.dx, out.dweight);
  return out;
}

Outputs RunReference(const Inputs& in) {
  const int64_t rows = in.x.view().dim(0), width = in.x.view().dim(1);
  Outputs out(DType::kFloat64, DType::kFloat64, rows, width);
  const OwnedTensor x = AsDouble(in.x), weight = AsDouble(in.weight), dy = AsDouble(in.dy);
  reference::RmsNorm(x, weight, kEpsilon, out.y, out.rstd);
  reference::RmsNormBackward(dy, x, weight, kEpsilon, out.dx, out.dweight);
  return out;
}

TEST(RmsNormTest, MatchesReferenceForEveryDTypeAndWidth) {
  const TestContext ctx;
  for (const DType dtype : test::kRealDTypes) {
    for (const int64_t width : {8, 15, 16, 17, 32, 64, 80, 96, 129, 512}) {
      for (const int64_t rows : {0, 1, 37}) {
        const std::string name = std::string(Name(dtype)) + " rows " + std::to_string(rows) +
                                 " width " + std::to_string(width);
        const Inputs in(dtype, rows, width);
        const Outputs got = RunOps(ctx, in, dtype);
        const Outputs want = RunReference(in);
        // One short row may lie at the bound of one rounding instead of at its average.
        const double slack = rows * width < 512 ? 1.6 : 1;
        EXPECT_TRUE(Close(got.y, want.y, slack * tolerance::RowOpForward(dtype), name + " y"));
        EXPECT_TRUE(Close(got.rstd, want.rstd, tolerance::kWeightGradient, name + " rstd"));
        EXPECT_TRUE(Close(got.dx, want.dx, slack * tolerance::RowOpBackward(dtype), name + " dx"));
        EXPECT_TRUE(
            Close(got.dweight, want.dweight, tolerance::kWeightGradient, name + " dweight"));
      }
    }
  }
}

TEST(RmsNormTest, ReferenceMatchesFiniteDifferences) {
  Inputs in(DType::kFloat64, 3, 10);
  Outputs out = RunReference(in);
  const auto loss = [&] {
    reference::RmsNorm(in.x, in.weight, kEpsilon, out.y, Tensor());
    return test::Inner(out.y, in.dy);
  };
  EXPECT_TRUE(test::MatchesFiniteDifference(loss, in.x, out.dx, "dx"));
  EXPECT_TRUE(test::MatchesFiniteDifference(loss, in.weight, out.dweight, "dweight"));
}

TEST(RmsNormTest, BitsDoNotDependOnThreadsOrTarget) {
  for (const DType dtype : test::kRealDTypes) {
    for (const int64_t width : {24, 192}) {
      const Inputs in(dtype, Many(1111, 61), width);
      test::ExpectSameBitsOnEveryMachine(Name(dtype), [&](const ExecContext& ctx) {
        Outputs out = RunOps(ctx, in, dtype);
        std::vector<OwnedTensor> all;
        all.push_back(std::move(out.y));
        all.push_back(std::move(out.rstd));
        all.push_back(std::move(out.dx));
        all.push_back(std::move(out.dweight));
        return all;
      });
    }
  }
}

TEST(RmsNormTest, SplitOfTheRowsChangesNoBit) {
  const TestContext ctx;
  const DType dtype = DType::kFloat16;
  const Inputs in(dtype, 53, 100);
  const Outputs whole = RunOps(ctx, in, dtype);
  Outputs parts(dtype, DType::kFloat32, 53, 100);
  for (int64_t begin = 0, size = 1; begin < 53;
       begin += size, size = std::min(size * 3, 53 - begin)) {
    const ConstTensor x = in.x.view().Rows(begin, size), dy = in.dy.view().Rows(begin, size);
    const Tensor rstd = parts.rstd.view().Rows(begin, size);
    RmsNorm(ctx, x, in.weight, kEpsilon, parts.y.view().Rows(begin, size), rstd);
    RmsNormBackward(ctx, dy, x, in.weight, rstd, parts.dx.view().Rows(begin, size), parts.dweight);
  }
  EXPECT_TRUE(SameBits(parts.y, whole.y, "y"));
  EXPECT_TRUE(SameBits(parts.dx, whole.dx, "dx"));
  EXPECT_TRUE(SameBits(parts.dweight, whole.dweight, "dweight"));
}

TEST(RmsNormTest, WorksInPlace) {
  const TestContext ctx;
  const DType dtype = DType::kBFloat16;
  const Inputs in(dtype, 9, 40);
  const Outputs want = RunOps(ctx, in, dtype);
  OwnedTensor x = As(dtype, in.x), dy = As(dtype, in.dy), dweight = Zeros(DType::kFloat32, {40});
  RmsNormBackward(ctx, dy, in.x, in.weight, want.rstd, dy, dweight);
  RmsNorm(ctx, x, in.weight, kEpsilon, x, Tensor());
  EXPECT_TRUE(SameBits(x, want.y, "y"));
  EXPECT_TRUE(SameBits(dy, want.dx, "dx"));
}

TEST(RmsNormTest, ForwardSaturatesAndCountsWhileBackwardOverflows) {
  const TestContext ctx;
  OwnedTensor x = Zeros(DType::kFloat16, {2, 16}), y = Zeros(DType::kFloat16, {2, 16});
  OwnedTensor weight = Zeros(DType::kFloat16, {16}), dy = Zeros(DType::kFloat16, {2, 16});
  OwnedTensor rstd = Zeros(DType::kFloat32, {2}), dweight = Zeros(DType::kFloat32, {16});
  for (int64_t i = 0; i < 32; ++i) test::StoreDouble(x, i, i % 16 < 4 ? 1e-2 : 0);
  for (int64_t i = 0; i < 16; ++i) test::StoreDouble(weight, i, 60000);
  for (int64_t i = 0; i < 32; ++i) test::StoreDouble(dy, i, i);
  RmsNorm(ctx, x, weight, kEpsilon, y, rstd);
  EXPECT_EQ(ctx.saturated(), 8);
  EXPECT_EQ(test::LoadDouble(y, 0), 65504);
  RmsNormBackward(ctx, dy, x, weight, rstd, y, dweight);
  EXPECT_TRUE(std::isinf(test::LoadDouble(y, 31)));
  EXPECT_EQ(ctx.saturated(), 8);
}

}  // namespace
}  // namespace halfstep
