// SPDX-License-Identifier: Apache-2.0
// The operations of the fast profile against the specification of the plain ones they stand for,
// and that they round at fewer places.
#include "kernels/ops/fused.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>

#include "kernels/ops/activation.h"
#include "kernels/ops/norm.h"
#include "kernels/ops/rope.h"
#include "kernels/reference/activation.h"
#include "kernels/reference/norm.h"
#include "kernels/reference/rope.h"
#include "tests/kernels/op_test.h"

namespace halfstep {
namespace {

using test::AsDouble;
using test::Close;
using test::LoadDouble;
using test::Random;
using test::RelativeL2;
using test::StoreDouble;
using test::TestContext;
using test::Zeros;

constexpr float kEpsilon = 1e-6f;

TEST(AddRmsNormTest, MatchesReferenceForEveryDTypeAndWidth) {
  for (const DType dtype : test::kRealDTypes) {
    for (const int64_t width : {1, 15, 16, 17, 48, 100, 512}) {
      for (const int64_t rows : {0, 1, 45}) {
        Random random(1);
        const OwnedTensor residual = random.Normal(dtype, {rows, width}, 2);
        const OwnedTensor delta = random.Normal(DType::kFloat32, {rows, width});
        const OwnedTensor weight = random.Normal(dtype, {width}, 0.3, 1);
        OwnedTensor sum = Zeros(dtype, {rows, width}), y = Zeros(dtype, {rows, width});
        AddRmsNorm(TestContext(2), residual, delta, weight, kEpsilon, sum, y);
        OwnedTensor exact = AsDouble(residual), want = Zeros(DType::kFloat64, {rows, width});
        for (int64_t i = 0; i < rows * width; ++i) {
          StoreDouble(exact, i, LoadDouble(exact, i) + LoadDouble(delta, i));
        }
        reference::RmsNorm(exact, AsDouble(weight), kEpsilon, want, Tensor());
        const std::string name = std::string(Name(dtype)) + " width " + std::to_string(width) +
                                 " rows " + std::to_string(rows);
        const double slack = rows * width < 512 ? 1.6 : 1;
        EXPECT_TRUE(Close(sum, exact, slack * tolerance::RowOpForward(dtype), name + " sum"));
        EXPECT_TRUE(Close(y, want, slack * tolerance::RowOpForward(dtype), name + " y"));
      }
    }
  }
}

TEST(AddRmsNormTest, TheSumMayTakeThePlaceOfTheResidual) {
  Random random(2);
  const OwnedTensor residual = random.Normal(DType::kFloat16, {9, 40});
  const OwnedTensor delta = random.Normal(DType::kFloat32, {9, 40});
  const OwnedTensor weight = random.Normal(DType::kFloat16, {40}, 0.3, 1);
  OwnedTensor sum = Zeros(DType::kFloat16, {9, 40}), y = Zeros(DType::kFloat16, {9, 40});
  AddRmsNorm(TestContext(), residual, delta, weight, kEpsilon, sum, y);
  OwnedTensor in_place = test::As(DType::kFloat16, residual),
              again = Zeros(DType::kFloat16, {9, 40});
  AddRmsNorm(TestContext(), in_place, delta, weight, kEpsilon, in_place, again);
  EXPECT_TRUE(test::SameBits(in_place, sum, "sum"));
  EXPECT_TRUE(test::SameBits(again, y, "y"));
}

TEST(AddRmsNormTest, OverflowSaturatesTheSumAndIsCounted) {
  const TestContext ctx;
  OwnedTensor residual = Zeros(DType::kFloat16, {1, 20}), delta = Zeros(DType::kFloat32, {1, 20});
  OwnedTensor weight = Zeros(DType::kFloat16, {20});
  StoreDouble(residual, 3, 60000);
  StoreDouble(delta, 3, 20000);
  OwnedTensor sum = Zeros(DType::kFloat16, {1, 20}), y = Zeros(DType::kFloat16, {1, 20});
  AddRmsNorm(ctx, residual, delta, weight, kEpsilon, sum, y);
  EXPECT_EQ(LoadDouble(sum, 3), 65504);
  EXPECT_EQ(ctx.saturated(), 1);
}

// Projections of some tokens and everything that turns them into heads.
struct HeadCase {
  HeadCase(DType type, int64_t tokens, int64_t q_heads, int64_t k_heads, int64_t width)
      : dtype(type), heads(q_heads), kv_heads(k_heads), head_dim(width) {
    Random random(3);
    qkv = random.Normal(DType::kFloat32, {tokens, (heads + 2 * kv_heads) * head_dim}, 1.5);
    q_norm = random.Normal(dtype, {head_dim}, 0.3, 1);
    k_norm = random.Normal(dtype, {head_dim}, 0.3, 1);
    positions = random.Ids(tokens, 50);
    OwnedTensor on_host("test", DType::kFloat32, {50, 2, head_dim / 2});
    FillRopeTable({}, on_host);
    table = test::As(DType::kFloat32, on_host);
    q = Zeros(dtype, {tokens, heads, head_dim});
    k = Zeros(dtype, {tokens, kv_heads, head_dim});
    v = Zeros(dtype, {tokens, kv_heads, head_dim});
  }

  void Run(const ExecContext& ctx, bool norm) {
    ProjectedHeads in;
    in.qkv = std::as_const(qkv).view();
    if (norm) {
      in.q_norm = std::as_const(q_norm).view();
      in.k_norm = std::as_const(k_norm).view();
    }
    in.epsilon = kEpsilon;
    in.positions = std::as_const(positions).view();
    in.rope_table = std::as_const(table).view();
    FinishHeads(ctx, in, q, k, v);
  }

  // Columns [first, first + count * head_dim) of qkv as [tokens, count, head_dim].
  OwnedTensor Part(DType type, int64_t first, int64_t count) const {
    const int64_t tokens = qkv.view().dim(0), width = qkv.view().dim(1);
    OwnedTensor part = Zeros(type, {tokens, count, head_dim});
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t i = 0; i < count * head_dim; ++i) {
        StoreDouble(part, t * count * head_dim + i, LoadDouble(qkv, t * width + first + i));
      }
    }
    return part;
  }

  // The specification: norm and rotation in FP64.
  OwnedTensor Want(int64_t first, int64_t count, const OwnedTensor* norm) const {
    OwnedTensor x = Part(DType::kFloat64, first, count);
    const int64_t rows = x.view().dim(0) * count;
    if (norm != nullptr) {
      const Tensor flat = x.view().Reshape({rows, head_dim});
      OwnedTensor y = Zeros(DType::kFloat64, {rows, head_dim});
      reference::RmsNorm(flat, AsDouble(*norm), kEpsilon, y, Tensor());
      std::memcpy(flat.data(), y.view().data(), flat.bytes());
    }
    OwnedTensor rotated = Zeros(DType::kFloat64, x.view().shape());
    reference::Rope(x, positions, AsDouble(table), rotated);
    return rotated;
  }

  DType dtype;
  int64_t heads, kv_heads, head_dim;
  OwnedTensor qkv, q_norm, k_norm, positions, table, q, k, v;
};

TEST(FinishHeadsTest, MatchesReferenceForEveryDTypeAndShape) {
  for (const DType dtype : test::kRealDTypes) {
    for (const int64_t head_dim : {8, 24, 32, 64, 80, 128}) {
      for (const bool norm : {false, true}) {
        HeadCase in(dtype, 33, 6, 2, head_dim);
        in.Run(TestContext(2), norm);
        const std::string name = std::string(Name(dtype)) + " head_dim " +
                                 std::to_string(head_dim) + (norm ? " with norm" : "");
        const double bound = tolerance::RowOpForward(dtype);
        const OwnedTensor q = in.Want(0, 6, norm ? &in.q_norm : nullptr);
        const OwnedTensor k = in.Want(6 * head_dim, 2, norm ? &in.k_norm : nullptr);
        EXPECT_TRUE(Close(in.q, q, bound, name + " q"));
        EXPECT_TRUE(Close(in.k, k, bound, name + " k"));
        EXPECT_TRUE(Close(in.v, in.Part(DType::kFloat64, 8 * head_dim, 2), bound, name + " v"));
      }
    }
  }
}

TEST(FinishHeadsTest, IsNearerToTheSpecificationThanTheOperationsItStandsFor) {
  const TestContext ctx;
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    HeadCase in(dtype, 64, 6, 2, 64);
    in.Run(ctx, true);
    const OwnedTensor want = in.Want(0, 6, &in.q_norm);
    OwnedTensor plain = in.Part(dtype, 0, 6);
    const Tensor rows = plain.view().Reshape({64 * 6, 64});
    RmsNorm(ctx, rows, in.q_norm, kEpsilon, rows, Tensor());
    Rope(ctx, plain, in.positions, in.table, plain);
    EXPECT_LT(RelativeL2(in.q, want), 0.75 * RelativeL2(plain, want)) << Name(dtype);
  }
}

TEST(FinishHeadsDeathTest, PositionOutsideTheTableIsAnInvariant) {
  HeadCase in(DType::kFloat16, 2, 1, 1, 8);
  for (const int32_t position : {-1, 50}) {
    in.positions = test::Ints({position, 0});
    if (!kEmulated) {
      EXPECT_DEATH(in.Run(TestContext(), true), "check failed");
      continue;
    }
    // The host does not see it: the result says so.
    in.Run(TestContext(), true);
    for (int64_t i = 0; i < 16; ++i) {
      EXPECT_EQ(std::isnan(LoadDouble(in.q, i)), i < 8);
      EXPECT_EQ(std::isnan(LoadDouble(in.k, i)), i < 8);
    }
  }
}

TEST(SwiGluTest, TakesUnroundedProducts) {
  for (const DType dtype : test::kRealDTypes) {
    Random random(4);
    const OwnedTensor gate_up = random.Normal(DType::kFloat32, {31, 2 * 70}, 2);
    OwnedTensor y = Zeros(dtype, {31, 70}), want = Zeros(DType::kFloat64, {31, 70});
    SwiGlu(TestContext(2), gate_up, y);
    reference::SwiGlu(AsDouble(gate_up), want);
    EXPECT_TRUE(Close(y, want, tolerance::RowOpForward(dtype), Name(dtype)));
  }
}

}  // namespace
}  // namespace halfstep
