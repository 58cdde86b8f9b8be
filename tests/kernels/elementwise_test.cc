// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "tests/kernels/op_test.h"

namespace halfstep {
namespace {

using test::As;
using test::LoadDouble;
using test::Random;
using test::SameBits;
using test::StoreDouble;
using test::TestContext;
using test::Zeros;

TEST(AddTest, RoundsTheExactSum) {
  const TestContext ctx;
  for (const DType dtype : test::kRealDTypes) {
    for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{15}, int64_t{16}, int64_t{17},
                                int64_t{1000}, Many(40001, 4001)}) {
      Random random(1);
      const OwnedTensor a = random.Normal(dtype, {count}), b = random.Normal(dtype, {count});
      OwnedTensor y = Zeros(dtype, {count}), want = Zeros(dtype, {count});
      for (int64_t i = 0; i < count; ++i) {
        // The sum in FP32 first: what the operation is defined to round.
        StoreDouble(want, i,
                    static_cast<float>(LoadDouble(a, i)) + static_cast<float>(LoadDouble(b, i)));
      }
      Add(ctx, a, b, Overflow::kSaturate, y);
      EXPECT_TRUE(SameBits(y, want, Name(dtype)));
      OwnedTensor in_place = As(dtype, a);
      Add(ctx, in_place, b, Overflow::kInfinity, in_place);
      EXPECT_TRUE(SameBits(in_place, want, Name(dtype)));
    }
  }
}

TEST(AddTest, OverflowSaturatesOrBecomesInfinity) {
  const TestContext ctx(2);
  OwnedTensor a = Zeros(DType::kFloat16, {3}), y = Zeros(DType::kFloat16, {3});
  StoreDouble(a, 0, 60000);
  StoreDouble(a, 1, -60000);
  StoreDouble(a, 2, std::nan(""));
  Add(ctx, a, a, Overflow::kInfinity, y);
  EXPECT_EQ(LoadDouble(y, 0), HUGE_VAL);
  EXPECT_EQ(ctx.saturated(), 0);
  Add(ctx, a, a, Overflow::kSaturate, y);
  EXPECT_EQ(LoadDouble(y, 0), 65504);
  EXPECT_EQ(LoadDouble(y, 1), -65504);
  EXPECT_TRUE(std::isnan(LoadDouble(y, 2)));
  EXPECT_EQ(ctx.saturated(), 2);
}

TEST(AccumulateTest, AddsInFp32) {
  const TestContext ctx(3);
  Random random(2);
  const int64_t count = Many(100003, 5003);
  const OwnedTensor x = random.Normal(DType::kFloat32, {count});
  OwnedTensor y = random.Normal(DType::kFloat32, {count});
  OwnedTensor want = As(DType::kFloat32, y);
  for (int64_t i = 0; i < count; ++i) want.view().as<float>()[i] += x.view().as<float>()[i];
  Accumulate(ctx, x, y);
  EXPECT_TRUE(SameBits(y, want, "accumulate"));
}

TEST(CastTest, IsExactRoundToNearestEvenBetweenAllTypes) {
  const TestContext ctx(2);
  Random random(3);
  for (const DType from : test::kRealDTypes) {
    const OwnedTensor x = random.Normal(from, {3, 1111}, 100);
    for (const DType to : test::kRealDTypes) {
      OwnedTensor y = Zeros(to, {3333});
      Cast(ctx, x, Overflow::kInfinity, y);
      OwnedTensor want = As(to, x);
      EXPECT_TRUE(
          SameBits(y, want.view().Reshape({3333}), std::string(Name(from)) + " to " + Name(to)));
    }
  }
}

TEST(CastTest, OverflowSaturatesAndCountsOrBecomesInfinity) {
  const TestContext ctx;
  OwnedTensor x = Zeros(DType::kFloat32, {4}), y = Zeros(DType::kFloat16, {4});
  const float values[] = {65519, 65520, -1e30f, std::numeric_limits<float>::infinity()};
  std::copy_n(values, 4, x.view().as<float>());
  Cast(ctx, x, Overflow::kInfinity, y);
  EXPECT_EQ(LoadDouble(y, 0), 65504);
  EXPECT_EQ(LoadDouble(y, 1), HUGE_VAL);
  Cast(ctx, x, Overflow::kSaturate, y);
  EXPECT_EQ(LoadDouble(y, 1), 65504);
  EXPECT_EQ(LoadDouble(y, 2), -65504);
  EXPECT_GE(ctx.saturated(), 3);
}

TEST(CopyTest, MovesEveryByteAndFillsWithZero) {
  const TestContext ctx(3);
  Random random(4);
  for (const int64_t count : {0, 1, 300001}) {
    const OwnedTensor x = random.Normal(DType::kFloat16, {count});
    OwnedTensor y = Zeros(DType::kFloat16, {count});
    const OwnedTensor zeros = Zeros(DType::kFloat16, {count});
    Copy(ctx, x, y);
    EXPECT_TRUE(SameBits(y, x, "copy"));
    FillZero(ctx, y);
    EXPECT_TRUE(SameBits(y, zeros, "zero"));
  }
}

TEST(CopyTest, CrossesFromTheHostToTheDeviceAndBack) {
  const TestContext ctx;
  Random random(8);
  const OwnedTensor x = random.Normal(DType::kFloat32, {3, 77});
  OwnedTensor on_host("test", DType::kFloat32, {3, 77}), again("test", DType::kFloat32, {3, 77});
  OwnedTensor on_device = Zeros(DType::kFloat32, {3, 77});
  Copy(ctx, x, on_host);
  Copy(ctx, on_host, on_device);
  Copy(ctx, on_device, again);
  const ExecContext& context = ctx;
  if (context.stream != nullptr) context.stream->Synchronize();
  EXPECT_TRUE(SameBits(again, x, "from the device"));
}

TEST(ColumnsTest, ManyPartsOfEveryWidth) {
  const TestContext ctx;
  Random random(9);
  // From single bytes to parts of 16 bytes each, and more of them than one launch takes.
  for (const auto& [dtype, unit] : {std::pair{DType::kUInt8, 1},
                                    {DType::kFloat16, 1},
                                    {DType::kFloat16, 2},
                                    {DType::kFloat32, 4}}) {
    constexpr int kParts = 6;
    OwnedTensor x = Zeros(dtype, {5, 21 * unit});
    auto* bytes = static_cast<uint8_t*>(x.view().data());
    for (size_t i = 0; i < x.view().bytes(); ++i) bytes[i] = static_cast<uint8_t>(random.Below(64));
    std::vector<OwnedTensor> parts;
    for (int i = 1; i <= kParts; ++i) parts.push_back(Zeros(dtype, {5, i * unit}));
    const std::vector<Tensor> outs(parts.begin(), parts.end());
    SplitColumns(ctx, x, outs);
    OwnedTensor y = Zeros(dtype, {5, 21 * unit});
    ConcatColumns(ctx, std::vector<ConstTensor>(outs.begin(), outs.end()), y);
    EXPECT_TRUE(SameBits(y, x, Name(dtype)));
    const auto* last = static_cast<const uint8_t*>(outs[kParts - 1].data());
    const size_t row = x.view().bytes() / 5, part = outs[kParts - 1].bytes() / 5;
    EXPECT_EQ(std::memcmp(last, bytes + row - part, part), 0) << Name(dtype);
  }
}

TEST(ColumnsTest, SplitAndConcatAreInverse) {
  const TestContext ctx(2);
  Random random(5);
  for (const DType dtype : test::kRealDTypes) {
    for (const int64_t rows : {int64_t{0}, int64_t{1}, Many(1000, 40)}) {
      const OwnedTensor x = random.Normal(dtype, {rows, 75});
      OwnedTensor a = Zeros(dtype, {rows, 64}), b = Zeros(dtype, {rows, 10}),
                  c = Zeros(dtype, {rows, 1});
      const Tensor outs[] = {a, b, c};
      SplitColumns(ctx, x, outs);
      if (rows > 0) {
        EXPECT_EQ(LoadDouble(b, 3), LoadDouble(x, 67));
        EXPECT_EQ(LoadDouble(c, rows - 1), LoadDouble(x, rows * 75 - 1));
      }
      OwnedTensor y = Zeros(dtype, {rows, 75});
      const ConstTensor ins[] = {a, b, c};
      ConcatColumns(ctx, ins, y);
      EXPECT_TRUE(SameBits(y, x, Name(dtype)));
    }
  }
}

TEST(RowsTest, GatherTakesAndScatterPutsBackWithZerosElsewhere) {
  const TestContext ctx(3);
  Random random(6);
  const int64_t all = Many(5000, 300);
  const OwnedTensor x = random.Normal(DType::kFloat32, {all, 33});
  std::vector<int32_t> index;
  for (int32_t i = 0; i < all; i += 1 + random.Below(5)) index.push_back(i);
  const OwnedTensor rows = test::Ints(index);
  const int64_t count = static_cast<int64_t>(index.size());
  OwnedTensor y = Zeros(DType::kFloat32, {count, 33}), back = As(DType::kFloat32, x);
  GatherRows(ctx, x, rows, y);
  ScatterRows(ctx, y, rows, back);
  size_t next = 0;
  for (int64_t r = 0; r < all; ++r) {
    const bool taken = next < index.size() && index[next] == r;
    if (taken) ++next;
    for (int64_t i = 0; i < 33; ++i) {
      EXPECT_EQ(LoadDouble(back, r * 33 + i), taken ? LoadDouble(x, r * 33 + i) : 0);
    }
  }
  OwnedTensor none = Zeros(DType::kFloat32, {0, 33});
  GatherRows(ctx, x, test::Ints({}), none);
  ScatterRows(ctx, none, test::Ints({}), back);
  EXPECT_TRUE(SameBits(back, Zeros(DType::kFloat32, {all, 33}), "nothing scattered"));
}

TEST(RowsDeathTest, RowOutsideIsAnInvariant) {
  const TestContext ctx;
  Random random(10);
  const OwnedTensor x = random.Normal(DType::kFloat16, {4, 9});
  OwnedTensor y = Zeros(DType::kFloat16, {2, 9});
  for (const int32_t row : {-1, 4}) {
    const OwnedTensor rows = test::Ints({2, row});
    if (!kEmulated) {
      EXPECT_DEATH(GatherRows(ctx, x, rows, y), "check failed");
      continue;
    }
    // The host does not see it: what was gathered says so.
    GatherRows(ctx, x, rows, y);
    EXPECT_TRUE(SameBits(y.view().Rows(0, 1), x.view().Rows(2, 1), "row within"));
    for (int64_t i = 9; i < 18; ++i) EXPECT_TRUE(std::isnan(LoadDouble(y, i)));
  }
  const OwnedTensor two = random.Normal(DType::kFloat16, {2, 9}), beyond = test::Ints({1, 4});
  OwnedTensor scattered = As(DType::kFloat16, x);
  if (!kEmulated) {
    EXPECT_DEATH(ScatterRows(ctx, two, beyond, scattered), "check failed");
    return;
  }
  ScatterRows(ctx, two, beyond, scattered);
  for (int64_t i = 0; i < 36; ++i) {
    EXPECT_EQ(LoadDouble(scattered, i), i / 9 == 1 ? LoadDouble(two, i - 9) : 0);
  }
}

TEST(ElementwiseTest, BitsDoNotDependOnThreadsOrTarget) {
  for (const DType dtype : test::kRealDTypes) {
    Random random(7);
    const int64_t count = Many(150001, 9001);
    const OwnedTensor a = random.Normal(dtype, {count}, 1e4),
                      b = random.Normal(dtype, {count}, 1e5);
    test::ExpectSameBitsOnEveryMachine(Name(dtype), [&](const ExecContext& ctx) {
      std::vector<OwnedTensor> out;
      out.push_back(Zeros(dtype, {count}));
      Add(ctx, a, b, Overflow::kSaturate, out.back());
      for (const DType to : test::kRealDTypes) {
        out.push_back(Zeros(to, {count}));
        Cast(ctx, b, Overflow::kSaturate, out.back());
      }
      return out;
    });
  }
}

}  // namespace
}  // namespace halfstep
