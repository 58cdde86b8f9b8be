// SPDX-License-Identifier: Apache-2.0
// The matrix products of the CUDA backend themselves: that every tile computes the chain that is
// promised, to the bit, wherever the matrices lie.
#include "kernels/cuda/gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/emulator/emulator.h"
#include "kernels/cuda/emulator/tensor_core.h"
#include "kernels/ops/linear.h"
#include "tests/kernels/op_test.h"

namespace halfstep::cuda {
namespace {

using test::LoadDouble;
using test::Random;
using test::SameBits;
using test::TestContext;
using test::Zeros;

constexpr ProductKind kKinds[] = {ProductKind::kForward, ProductKind::kBackwardInput,
                                  ProductKind::kBackwardWeight};
constexpr DType kHalves[] = {DType::kFloat16, DType::kBFloat16};

struct Sizes {
  int64_t m, n, k;
};

struct Factors {
  DType left, right;
};

struct Case {
  Case(Random& random, ProductKind product, Factors dtypes, const Sizes& s)
      : kind(product), sizes(s) {
    left = random.Normal(dtypes.left, LeftByInner(kind) ? Shape{s.m, s.k} : Shape{s.k, s.m});
    right = random.Normal(dtypes.right, RightByInner(kind) ? Shape{s.n, s.k} : Shape{s.k, s.n});
    if (kind == ProductKind::kForward) bias = random.Normal(dtypes.right, {s.n});
    start = random.Normal(DType::kFloat32, {s.m, s.n});
  }

  // What a product has before it: the sum that the weight gradient continues.
  OwnedTensor Before(DType dtype) const {
    return kind == ProductKind::kBackwardWeight ? test::As(DType::kFloat32, start)
                                                : Zeros(dtype, {sizes.m, sizes.n});
  }
  MatrixProduct Into(Tensor result) const { return {kind, left, right, bias, result}; }

  double Left(int64_t m, int64_t k) const {
    return LoadDouble(left, LeftByInner(kind) ? m * sizes.k + k : k * sizes.m + m);
  }
  double Right(int64_t k, int64_t n) const {
    return LoadDouble(right, RightByInner(kind) ? n * sizes.k + k : k * sizes.n + n);
  }
  float Finished(float chain, int64_t n) const {
    return kind == ProductKind::kForward ? chain + static_cast<float>(LoadDouble(bias, n)) : chain;
  }

  ProductKind kind;
  Sizes sizes;
  OwnedTensor left, right, bias, start;
};

DType ResultOf(ProductKind kind, DType half) {
  return kind == ProductKind::kBackwardWeight ? DType::kFloat32 : half;
}

std::string CaseName(ProductKind kind, DType dtype, TileShape tile) {
  return std::string(Name(dtype)) + " kind " + std::to_string(static_cast<int>(kind)) + " tile " +
         std::to_string(tile.rows) + " x " + std::to_string(tile.columns);
}

// One accumulator per element, matrix instructions over ascending steps of 16.
template <class T>
OwnedTensor ChainOfInstructions(const Case& c, DType result) {
  OwnedTensor want = c.Before(result);
  for (int64_t m0 = 0; m0 < c.sizes.m; m0 += 16) {
    for (int64_t n0 = 0; n0 < c.sizes.n; n0 += 8) {
      const int64_t rows = std::min<int64_t>(16, c.sizes.m - m0);
      const int64_t columns = std::min<int64_t>(8, c.sizes.n - n0);
      float d[16][8] = {};
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t n = 0; n < columns; ++n) {
          d[m][n] = static_cast<float>(LoadDouble(want, (m0 + m) * c.sizes.n + n0 + n));
        }
      }
      for (int64_t k0 = 0; k0 < c.sizes.k; k0 += 16) {
        T a[16][16] = {}, b[8][16] = {};
        for (int64_t k = 0; k < std::min<int64_t>(16, c.sizes.k - k0); ++k) {
          for (int64_t m = 0; m < rows; ++m) {
            a[m][k] = FromFloat<T>(static_cast<float>(c.Left(m0 + m, k0 + k)));
          }
          for (int64_t n = 0; n < columns; ++n) {
            b[n][k] = FromFloat<T>(static_cast<float>(c.Right(k0 + k, n0 + n)));
          }
        }
        emulator::TensorCoreMultiplyAdd(a, b, d);
      }
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t n = 0; n < columns; ++n) {
          test::StoreDouble(want, (m0 + m) * c.sizes.n + n0 + n, c.Finished(d[m][n], n0 + n));
        }
      }
    }
  }
  return want;
}

TEST(TensorCoreProductTest, IsOneChainOfMatrixInstructionsOnEveryTile) {
  const TestContext ctx;
  for (const DType half : kHalves) {
    for (const ProductKind kind : kKinds) {
      Random random(1);
      // More slices than a ring has stages, the last one and its last instruction incomplete.
      const Case c(random, kind, {half, half}, {20, 40, 9 * 64 + 24});
      const OwnedTensor want = half == DType::kFloat16
                                   ? ChainOfInstructions<Float16>(c, ResultOf(kind, half))
                                   : ChainOfInstructions<BFloat16>(c, ResultOf(kind, half));
      for (const TileShape tile : TensorCoreTiles(kind)) {
        OwnedTensor got = c.Before(ResultOf(kind, half));
        TensorCoreProductWith(ctx, c.Into(got), tile);
        EXPECT_TRUE(SameBits(got, want, CaseName(kind, half, tile)));
      }
    }
  }
}

TEST(TensorCoreProductTest, RowsHaveTheSameBitsInEveryBatchOnEveryTile) {
  const TestContext ctx;
  for (const DType half : kHalves) {
    for (const ProductKind kind : {ProductKind::kForward, ProductKind::kBackwardInput}) {
      Random random(2);
      const Case c(random, kind, {half, half}, {133, 48, 72});
      OwnedTensor whole = c.Before(half);
      TensorCoreProduct(ctx, c.Into(whole));
      for (const TileShape tile : TensorCoreTiles(kind)) {
        for (const int64_t rows : {1, 7, 16, 64, 133}) {
          const int64_t begin = (133 - rows) / 2;
          OwnedTensor part = Zeros(half, {rows, c.sizes.n});
          MatrixProduct product = c.Into(part);
          product.left = product.left.Rows(begin, rows);
          TensorCoreProductWith(ctx, product, tile);
          EXPECT_TRUE(SameBits(part, whole.view().Rows(begin, rows),
                               CaseName(kind, half, tile) + " rows " + std::to_string(rows)));
        }
      }
    }
  }
}

// The same values with rows that do not begin at multiples of 16 bytes, and results whose pairs do
// not lie on multiples of their size.
TEST(TensorCoreProductTest, AlignmentChangesNoBits) {
  const TestContext ctx;
  const auto shifted = [](ConstTensor x, OwnedTensor& storage) {
    storage = Zeros(x.dtype(), {x.elements() + 1});
    auto* const data = static_cast<unsigned char*>(storage.view().data()) + SizeOf(x.dtype());
    std::copy_n(static_cast<const unsigned char*>(x.data()), x.bytes(), data);
    return Tensor(data, x.dtype(), x.shape(), x.device());
  };
  for (const DType half : kHalves) {
    for (const ProductKind kind : kKinds) {
      Random random(3);
      const Case c(random, kind, {half, half}, {24, 40, 104});
      OwnedTensor want = c.Before(ResultOf(kind, half));
      TensorCoreProduct(ctx, c.Into(want));
      OwnedTensor storage[4];
      MatrixProduct product = c.Into(shifted(c.Before(ResultOf(kind, half)), storage[0]));
      product.left = shifted(c.left, storage[1]);
      TensorCoreProduct(ctx, product);
      EXPECT_TRUE(SameBits(product.result, want, CaseName(kind, half, {})));
      product.right = shifted(c.right, storage[2]);
      product.left = c.left;
      product.result = shifted(c.Before(ResultOf(kind, half)), storage[3]);
      TensorCoreProduct(ctx, product);
      EXPECT_TRUE(SameBits(product.result, want, CaseName(kind, half, {})));
    }
  }
}

TEST(TensorCoreProductTest, ChoosesSmallTilesWhereThereAreFewBlocks) {
  const auto choose = [](ProductKind kind, int64_t m, int64_t n) { return ChooseTile(kind, m, n); };
  EXPECT_EQ(choose(ProductKind::kForward, 1, 896), (TileShape{16, 32}));
  EXPECT_EQ(choose(ProductKind::kForward, 16, 151936), (TileShape{16, 128}));
  EXPECT_EQ(choose(ProductKind::kForward, 64, 896), (TileShape{16, 32}));
  EXPECT_EQ(choose(ProductKind::kForward, 64, 9728), (TileShape{64, 128}));
  EXPECT_EQ(choose(ProductKind::kForward, 256, 512), (TileShape{64, 32}));
  EXPECT_EQ(choose(ProductKind::kForward, 4096, 4864), (TileShape{128, 128}));
  EXPECT_EQ(choose(ProductKind::kBackwardInput, 4096, 896), (TileShape{128, 64}));
  EXPECT_EQ(choose(ProductKind::kBackwardInput, 1024, 896), (TileShape{64, 64}));
  EXPECT_EQ(choose(ProductKind::kBackwardWeight, 4864, 896), (TileShape{128, 64}));
  EXPECT_EQ(choose(ProductKind::kBackwardWeight, 896, 896), (TileShape{64, 64}));
  EXPECT_EQ(choose(ProductKind::kBackwardWeight, 128, 896), (TileShape{16, 32}));
}

// No work beyond the inner index: its last instruction is the last one.
TEST(TensorCoreProductTest, RunsAsManyInstructionsAsTheInnerIndexNeeds) {
  const TestContext ctx;
  Random random(4);
  for (const int64_t k : {0, 8, 16, 24, 64, 72, 136}) {
    const Case c(random, ProductKind::kForward, {DType::kFloat16, DType::kFloat16}, {16, 32, k});
    OwnedTensor y = c.Before(DType::kFloat32);
    const int64_t before = emulator::MatrixInstructions();
    TensorCoreProductWith(ctx, c.Into(y), {16, 32});
    EXPECT_EQ(emulator::MatrixInstructions() - before, (k + 15) / 16 * 4) << k;
  }
}

TEST(SaturateStoredTest, MakesInfinitiesTheLargestNumberAndCountsThem) {
  const TestContext ctx;
  OwnedTensor x = Zeros(DType::kFloat16, {3, 200});
  auto* const values = x.view().as<Float16>();
  for (int i = 0; i < 600; ++i) values[i].bits = static_cast<uint16_t>(i);
  values[0].bits = 0x7c00;    // Inf
  values[599].bits = 0xfc00;  // -Inf
  values[7].bits = 0x7e00;    // NaN
  values[8].bits = 0x7bff;    // 65504
  SaturateStored(ctx, x);
  EXPECT_EQ(values[0].bits, 0x7bff);
  EXPECT_EQ(values[599].bits, 0xfbff);
  EXPECT_TRUE(std::isnan(LoadDouble(x, 7)));
  EXPECT_EQ(values[8].bits, 0x7bff);
  for (int i = 9; i < 599; ++i) ASSERT_EQ(values[i].bits, i);
  EXPECT_EQ(ctx.saturated(), 2);
}

// Every element is a chain of fused multiply-adds; large results take another tile than small ones.
TEST(Fp32ProductTest, IsOneFusedChainOnEveryTile) {
  const TestContext ctx;
  for (const ProductKind kind : kKinds) {
    for (const DType right : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
      std::vector<Sizes> cases = {{1, 5, 40}, {37, 70, 33}, {16, 64, 16}, {3, 2, 0}};
      if (right == DType::kFloat16) cases.push_back({1000, 1001, 19});
      for (const Sizes& sizes : cases) {
        Random random(5);
        const Case c(random, kind, {DType::kFloat32, right}, sizes);
        std::vector<DType> results = {DType::kFloat32};
        if (kind == ProductKind::kBackwardInput) results.push_back(right);
        for (const DType result : results) {
          const OwnedTensor before = c.Before(result);
          OwnedTensor got = c.Before(result);
          Fp32Product(ctx, c.Into(got));
          const int64_t stride = sizes.m * sizes.n > 10000 ? 97 : 1;
          for (int64_t i = 0; i < sizes.m * sizes.n; i += stride) {
            const int64_t m = i / sizes.n, n = i % sizes.n;
            float chain = static_cast<float>(LoadDouble(before, i));
            for (int64_t k = 0; k < sizes.k; ++k) {
              chain = std::fma(static_cast<float>(c.Left(m, k)), static_cast<float>(c.Right(k, n)),
                               chain);
            }
            OwnedTensor want = Zeros(result, {1});
            test::StoreDouble(want, 0, c.Finished(chain, n));
            ASSERT_EQ(LoadDouble(got, i), LoadDouble(want, 0))
                << Name(right) << ' ' << Name(result) << ' ' << m << ", " << n << " of " << sizes.m
                << " x " << sizes.n << " over " << sizes.k;
          }
        }
      }
    }
  }
}

// Linear layers of which a part is FP32 go to Fp32Product, and sum the bias's gradient in one
// chain.
TEST(LinearTest, Fp32BesideA16BitWeightTakesTheFp32Chain) {
  const TestContext ctx;
  for (const DType half : kHalves) {
    Random random(6);
    const Sizes sizes{37, 18, 300};
    const auto make = [&](ProductKind kind) {
      return Case(random, kind, {DType::kFloat32, half}, sizes);
    };
    const Case forward = make(ProductKind::kForward);
    OwnedTensor want = forward.Before(DType::kFloat32), y = forward.Before(DType::kFloat32);
    Fp32Product(ctx, forward.Into(want));
    halfstep::Linear(ctx, forward.left, {forward.right, {}, forward.bias}, y);
    EXPECT_TRUE(SameBits(y, want, "forward"));

    const Case input = make(ProductKind::kBackwardInput);
    for (const DType result : {half, DType::kFloat32}) {
      OwnedTensor want_dx = input.Before(result), dx = input.Before(result);
      Fp32Product(ctx, input.Into(want_dx));
      halfstep::LinearBackwardInput(ctx, input.left, {input.right, {}, {}}, dx);
      EXPECT_TRUE(SameBits(dx, want_dx, "backward input"));
    }

    const Case weight = make(ProductKind::kBackwardWeight);
    OwnedTensor want_dw = weight.Before(DType::kFloat32), dw = weight.Before(DType::kFloat32);
    OwnedTensor dbias = random.Normal(DType::kFloat32, {sizes.m});
    OwnedTensor want_dbias = test::As(DType::kFloat32, dbias);
    for (int64_t m = 0; m < sizes.m; ++m) {
      float& chain = want_dbias.view().as<float>()[m];
      for (int64_t k = 0; k < sizes.k; ++k) chain += static_cast<float>(weight.Left(m, k));
    }
    Fp32Product(ctx, weight.Into(want_dw));
    halfstep::LinearBackwardWeight(ctx, weight.left, weight.right, dw, dbias);
    EXPECT_TRUE(SameBits(dw, want_dw, "backward weight"));
    EXPECT_TRUE(SameBits(dbias, want_dbias, "backward bias"));
  }
}

}  // namespace
}  // namespace halfstep::cuda
