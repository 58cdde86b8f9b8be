// SPDX-License-Identifier: Apache-2.0
// The bitwise contract of the matrix products: a row's bits depend on that row and the weights
// only, and weight gradients do not depend on how the tokens were split over calls.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_target.h"
#include "kernels/ops/linear.h"
#include "tests/kernels/op_test.h"

namespace halfstep {
namespace {

using test::kRealDTypes;
using test::LoadDouble;
using test::SameBits;
using test::TestContext;
using test::Zeros;

struct Dims {
  int64_t tokens, in, out;
};

// Several tiles, panels and blocks of the inner index, none of them whole; then the shapes of a
// small model; then inner sizes beyond what is converted at once.
const std::vector<Dims> kCases =
    kEmulated
        ? std::vector<Dims>{{67, 213, 77}, {41, 512, 40}, {133, 40, 150}}
        : std::vector<Dims>{
              {67, 213, 77}, {260, 96, 300}, {41, 512, 160}, {300, 401, 1100}, {37, 2500, 65}};

struct Weight {
  OwnedTensor plain, packed, bias;
  LinearWeight view() const { return {plain.view(), packed.view(), bias.view()}; }
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

// The whole batch on one thread and the best target.
OwnedTensor Forward(const ExecContext& ctx, ConstTensor x, const Weight& w, DType out) {
  OwnedTensor y = Zeros(out, {x.dim(0), w.plain.view().dim(0)});
  Linear(ctx, x, w.view(), y);
  return y;
}

OwnedTensor BackwardInput(const ExecContext& ctx, ConstTensor dy, const Weight& w) {
  OwnedTensor dx = Zeros(dy.dtype(), {dy.dim(0), w.plain.view().dim(1)});
  LinearBackwardInput(ctx, dy, w.view(), dx);
  return dx;
}

std::string CaseName(const Dims& dims, DType dtype) {
  return std::string(Name(dtype)) + " tokens " + std::to_string(dims.tokens) + " in " +
         std::to_string(dims.in) + " out " + std::to_string(dims.out);
}

TEST(LinearBitwiseTest, RowAloneEqualsRowInAnyBatch) {
  TestContext ctx;
  test::Random random(1);
  for (const DType dtype : kRealDTypes) {
    for (const Dims& dims : kCases) {
      const Weight w = MakeWeight(ctx, random, dtype, dims);
      const OwnedTensor x = random.Normal(dtype, {dims.tokens, dims.in});
      const OwnedTensor dy = random.Normal(dtype, {dims.tokens, dims.out});
      const OwnedTensor y = Forward(ctx, x, w, dtype), dx = BackwardInput(ctx, dy, w);
      for (const int64_t rows : {1, 2, 3, 4, 6, 7, 8, 13, 14, 15, 29}) {
        const int64_t stride = Many(rows + 11, rows + 43);
        for (int64_t begin = 0; begin + rows <= dims.tokens; begin += stride) {
          const std::string name = CaseName(dims, dtype) + " rows " + std::to_string(rows);
          ASSERT_TRUE(SameBits(Forward(ctx, x.view().Rows(begin, rows), w, dtype),
                               y.view().Rows(begin, rows), name));
          ASSERT_TRUE(SameBits(BackwardInput(ctx, dy.view().Rows(begin, rows), w),
                               dx.view().Rows(begin, rows), name));
        }
      }
    }
  }
}

TEST(LinearBitwiseTest, ThreadsAndTargetsComputeTheSameBits) {
  test::Random random(2);
  TestContext one;
  for (const DType dtype : kRealDTypes) {
    for (const Dims& dims : kCases) {
      const Weight w = MakeWeight(one, random, dtype, dims);
      const OwnedTensor x = random.Normal(dtype, {dims.tokens, dims.in});
      const OwnedTensor dy = random.Normal(dtype, {dims.tokens, dims.out});
      const OwnedTensor y = Forward(one, x, w, dtype), logits = Forward(one, x, w, DType::kFloat32);
      const OwnedTensor dx = BackwardInput(one, dy, w);
      OwnedTensor dweight = Zeros(DType::kFloat32, {dims.out, dims.in});
      OwnedTensor dbias = Zeros(DType::kFloat32, {dims.out});
      LinearBackwardWeight(one, dy, x, dweight, dbias);
      for (const std::string& target : test::MachinesUnderTest()) {
        for (const int threads : {1, 2, 3}) {
          SetCpuTargetForTest(target);
          TestContext ctx(threads);
          const std::string name =
              CaseName(dims, dtype) + " " + target + " threads " + std::to_string(threads);
          EXPECT_TRUE(SameBits(Forward(ctx, x, w, dtype), y, name));
          EXPECT_TRUE(SameBits(Forward(ctx, x, w, DType::kFloat32), logits, name));
          EXPECT_TRUE(SameBits(BackwardInput(ctx, dy, w), dx, name));
          OwnedTensor other = Zeros(DType::kFloat32, {dims.out, dims.in});
          OwnedTensor other_bias = Zeros(DType::kFloat32, {dims.out});
          LinearBackwardWeight(ctx, dy, x, other, other_bias);
          EXPECT_TRUE(SameBits(other, dweight, name));
          EXPECT_TRUE(SameBits(other_bias, dbias, name));
          SetCpuTargetForTest("");
        }
      }
    }
  }
}

TEST(LinearBitwiseTest, SplitOfTheTokensChangesNoWeightGradient) {
  TestContext ctx(2);
  test::Random random(3);
  for (const DType dtype : kRealDTypes) {
    const Dims dims{Many(500, 200), 70, 45};
    const OwnedTensor x = random.Normal(dtype, {dims.tokens, dims.in});
    const OwnedTensor dy = random.Normal(dtype, {dims.tokens, dims.out});
    const auto run = [&](int64_t step, Tensor dweight, Tensor dbias) {
      for (int64_t t = 0; t < dims.tokens; t += step) {
        const int64_t count = std::min(step, dims.tokens - t);
        LinearBackwardWeight(ctx, dy.view().Rows(t, count), x.view().Rows(t, count), dweight,
                             dbias);
      }
    };
    OwnedTensor dweight = Zeros(DType::kFloat32, {dims.out, dims.in});
    OwnedTensor dbias = Zeros(DType::kFloat32, {dims.out});
    run(dims.tokens, dweight, dbias);
    // With tensor cores the chain goes in steps of 16 tokens.
    const bool in_steps = kEmulated && dtype != DType::kFloat32;
    for (const int64_t step :
         in_steps ? std::vector<int64_t>{16, 64, 112} : std::vector<int64_t>{1, 7, 64, 193}) {
      OwnedTensor other = Zeros(DType::kFloat32, {dims.out, dims.in});
      OwnedTensor other_bias = Zeros(DType::kFloat32, {dims.out});
      run(step, other, other_bias);
      EXPECT_TRUE(SameBits(other, dweight, CaseName(dims, dtype)));
      EXPECT_TRUE(SameBits(other_bias, dbias, CaseName(dims, dtype)));
    }
  }
}

TEST(LinearBitwiseTest, IsOneFusedChainOverAscendingInnerIndex) {
  TestContext ctx;
  test::Random random(4);
  const Dims dims{20, 450, 40};
  // The matrix instructions of tensor cores add 16 products at once (cuda/gemm_test.cc).
  const DType dtype = kEmulated ? DType::kFloat32 : DType::kFloat16;
  const Weight w = MakeWeight(ctx, random, dtype, dims);
  const OwnedTensor x = random.Normal(dtype, {dims.tokens, dims.in});
  OwnedTensor want = Zeros(DType::kFloat32, {dims.tokens, dims.out});
  for (int64_t t = 0; t < dims.tokens; ++t) {
    for (int64_t o = 0; o < dims.out; ++o) {
      float chain = 0;
      for (int64_t i = 0; i < dims.in; ++i) {
        chain = std::fma(static_cast<float>(LoadDouble(x, t * dims.in + i)),
                         static_cast<float>(LoadDouble(w.plain, o * dims.in + i)), chain);
      }
      want.view().as<float>()[t * dims.out + o] = chain + static_cast<float>(LoadDouble(w.bias, o));
    }
  }
  EXPECT_TRUE(SameBits(Forward(ctx, x, w, DType::kFloat32), want, "chain"));
}

// The negative control: the same product as a sum of two halves of the inner index is as accurate,
// and the comparison of this file sees the difference.
TEST(LinearBitwiseTest, SplitInnerIndexIsNoticed) {
  TestContext ctx;
  test::Random random(5);
  const Dims dims{30, 512, 64};
  const OwnedTensor x = random.Normal(DType::kFloat16, {dims.tokens, dims.in});
  const OwnedTensor weight = random.Normal(DType::kFloat16, {dims.out, dims.in}, 0.2);
  const auto product = [&](int64_t begin, int64_t end) {
    const auto columns = [&](ConstTensor from) {
      OwnedTensor part = Zeros(DType::kFloat16, {from.dim(0), end - begin});
      for (int64_t r = 0; r < from.dim(0); ++r) {
        std::copy_n(from.as<Float16>() + r * from.dim(1) + begin, end - begin,
                    part.view().as<Float16>() + r * (end - begin));
      }
      return part;
    };
    Weight w;
    w.plain = columns(weight);
    w.bias = Zeros(DType::kFloat16, {dims.out});
    w.packed = Zeros(DType::kUInt8, {static_cast<int64_t>(PackedLinearBytes(
                                        kTestDevice, DType::kFloat16, dims.out, end - begin))});
    PackLinear(ctx, std::as_const(w.plain).view(), w.packed);
    return Forward(ctx, columns(x), w, DType::kFloat32);
  };
  const OwnedTensor whole = product(0, dims.in);
  OwnedTensor split = product(0, dims.in / 2);
  const OwnedTensor rest = product(dims.in / 2, dims.in);
  for (int64_t i = 0; i < split.view().elements(); ++i) {
    split.view().as<float>()[i] += rest.view().as<float>()[i];
  }
  EXPECT_TRUE(test::Close(split, whole, tolerance::Gemm(DType::kFloat32), "split"));
  EXPECT_FALSE(SameBits(split, whole, "split"));
}

TEST(LinearBitwiseTest, Fp16ForwardStoresSaturateAndAreCounted) {
  for (const int threads : {1, 2}) {
    TestContext ctx(threads);
    for (const int64_t rows : {3, 40}) {
      const Dims dims{rows, 200, 90};
      Weight w;
      w.plain = Zeros(DType::kFloat16, {dims.out, dims.in});
      for (int64_t i = 0; i < dims.in; ++i) w.plain.view().as<Float16>()[i] = ToFloat16(400.0f);
      for (int64_t i = 0; i < dims.in; ++i) {
        w.plain.view().as<Float16>()[dims.in + i] = ToFloat16(-400.0f);
      }
      w.bias = Zeros(DType::kFloat16, {dims.out});
      w.packed = Zeros(DType::kUInt8, {static_cast<int64_t>(PackedLinearBytes(
                                          kTestDevice, DType::kFloat16, dims.out, dims.in))});
      PackLinear(ctx, std::as_const(w.plain).view(), w.packed);
      OwnedTensor x = Zeros(DType::kFloat16, {rows, dims.in});
      for (int64_t i = 0; i < x.view().elements(); ++i) {
        x.view().as<Float16>()[i] = ToFloat16(1.0f);
      }
      const int64_t before = ctx.saturated();
      const OwnedTensor y = Forward(ctx, x, w, DType::kFloat16);
      EXPECT_EQ(LoadDouble(y, 0), 65504);
      EXPECT_EQ(LoadDouble(y, 1), -65504);
      EXPECT_EQ(LoadDouble(y, 2), 0);
      EXPECT_EQ(ctx.saturated() - before, 2 * rows);
      // Gradients overflow to infinity, where the loss scaler sees them.
      OwnedTensor dy = Zeros(DType::kFloat16, {rows, dims.out});
      dy.view().as<Float16>()[0] = ToFloat16(1000.0f);
      const OwnedTensor dx = BackwardInput(ctx, dy, w);
      EXPECT_TRUE(std::isinf(LoadDouble(dx, 0)));
      EXPECT_EQ(ctx.saturated() - before, 2 * rows);
    }
  }
}

TEST(LinearBitwiseTest, NanStaysNan) {
  TestContext ctx;
  test::Random random(6);
  const Dims dims{4, 33, 20};
  const Weight w = MakeWeight(ctx, random, DType::kFloat16, dims);
  OwnedTensor x = random.Normal(DType::kFloat16, {dims.tokens, dims.in});
  x.view().as<Float16>()[dims.in + 5] = Float16{0x7e00};
  const OwnedTensor y = Forward(ctx, x, w, DType::kFloat16);
  for (int64_t i = 0; i < y.view().elements(); ++i) {
    EXPECT_EQ(std::isnan(LoadDouble(y, i)), i / dims.out == 1) << i;
  }
}

}  // namespace
}  // namespace halfstep
