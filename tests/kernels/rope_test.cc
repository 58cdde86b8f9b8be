// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/rope.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/reference/rope.h"
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

constexpr int64_t kPositions = 300;

OwnedTensor Table(int64_t head_dim, const RopeParameters& parameters = {}) {
  OwnedTensor table("test", DType::kFloat32, {kPositions, 2, head_dim / 2});
  FillRopeTable(parameters, table);
  return As(DType::kFloat32, table);
}

struct Inputs {
  Inputs(DType dtype, int64_t tokens, int64_t heads, int64_t head_dim) {
    Random random(1);
    x = random.Normal(dtype, {tokens, heads, head_dim});
    positions = random.Ids(tokens, kPositions);
  }
  OwnedTensor x, positions;
};

TEST(RopeTest, MatchesReferenceForEveryDTypeAndShape) {
  const TestContext ctx;
  for (const DType dtype : test::kRealDTypes) {
    for (const int64_t head_dim : {2, 8, 16, 24, 32, 64, 80, 96, 128}) {
      for (const int64_t tokens : {0, 1, 45}) {
        const Inputs in(dtype, tokens, 3, head_dim);
        const OwnedTensor table = Table(head_dim);
        const Shape shape = in.x.view().shape();
        OwnedTensor y = Zeros(dtype, shape), dx = Zeros(dtype, shape);
        Rope(ctx, in.x, in.positions, table, y);
        RopeBackward(ctx, in.x, in.positions, table, dx);
        OwnedTensor want = Zeros(DType::kFloat64, shape), dwant = Zeros(DType::kFloat64, shape);
        reference::Rope(AsDouble(in.x), in.positions, AsDouble(table), want);
        reference::RopeBackward(AsDouble(in.x), in.positions, AsDouble(table), dwant);
        const std::string name = std::string(Name(dtype)) + " head_dim " +
                                 std::to_string(head_dim) + " tokens " + std::to_string(tokens);
        const double slack = shape.elements() < 512 ? 1.6 : 1;
        EXPECT_TRUE(Close(y, want, slack * tolerance::RowOpForward(dtype), name + " y"));
        EXPECT_TRUE(Close(dx, dwant, slack * tolerance::RowOpBackward(dtype), name + " dx"));
      }
    }
  }
}

TEST(RopeTest, ReferenceMatchesFiniteDifferences) {
  Random random(2);
  OwnedTensor x = random.Normal(DType::kFloat64, {3, 2, 8});
  const OwnedTensor dy = random.Normal(DType::kFloat64, {3, 2, 8});
  const OwnedTensor positions = random.Ids(3, kPositions), table = AsDouble(Table(8));
  OwnedTensor y = Zeros(DType::kFloat64, {3, 2, 8}), dx = Zeros(DType::kFloat64, {3, 2, 8});
  reference::RopeBackward(dy, positions, table, dx);
  const auto loss = [&] {
    reference::Rope(x, positions, table, y);
    return test::Inner(y, dy);
  };
  EXPECT_TRUE(test::MatchesFiniteDifference(loss, x, dx, "dx"));
}

TEST(RopeTest, BitsDoNotDependOnThreadsOrTargetOrPlace) {
  for (const DType dtype : test::kRealDTypes) {
    for (const int64_t head_dim : {24, 32}) {
      const Inputs in(dtype, Many(700, 30), 6, head_dim);
      const OwnedTensor table = Table(head_dim);
      test::ExpectSameBitsOnEveryMachine(Name(dtype), [&](const ExecContext& ctx) {
        std::vector<OwnedTensor> out;
        out.push_back(Zeros(dtype, in.x.view().shape()));
        Rope(ctx, in.x, in.positions, table, out.back());
        OwnedTensor in_place = As(dtype, in.x);
        Rope(ctx, in_place, in.positions, table, in_place);
        EXPECT_TRUE(SameBits(in_place, out.back(), "in place"));
        RopeBackward(ctx, in_place, in.positions, table, in_place);
        out.push_back(std::move(in_place));
        return out;
      });
    }
  }
}

TEST(RopeTest, PositionZeroIsTheIdentity) {
  const TestContext ctx;
  Random random(3);
  const OwnedTensor x = random.Normal(DType::kFloat16, {4, 2, 32});
  OwnedTensor y = Zeros(DType::kFloat16, {4, 2, 32});
  Rope(ctx, x, test::Ints({0, 0, 0, 0}), Table(32), y);
  EXPECT_TRUE(SameBits(y, x, "position 0"));
}

TEST(RopeTableTest, DefaultFrequenciesFollowTheFormula) {
  const OwnedTensor table = Table(64, {.theta = 1e6, .llama3 = {}});
  for (const int64_t position : {0, 1, 17, 299}) {
    for (int64_t i = 0; i < 32; ++i) {
      const double angle =
          static_cast<double>(position) / std::pow(1e6, 2.0 * static_cast<double>(i) / 64);
      const float* row = table.view().as<float>() + position * 64;
      EXPECT_FLOAT_EQ(row[i], static_cast<float>(std::cos(angle)));
      EXPECT_NEAR(row[32 + i], std::sin(angle), 1e-7);
    }
  }
}

// The definition of transformers' `_compute_llama3_parameters`, restated.
double Llama3Frequency(double frequency) {
  const double factor = 8, low = 1, high = 4, original = 8192;
  const double wavelength = 2 * std::numbers::pi / frequency;
  const double smooth = std::clamp((original / wavelength - low) / (high - low), 0.0, 1.0);
  return (1 - smooth) * frequency / factor + smooth * frequency;
}

TEST(RopeTableTest, Llama3ScalingFollowsTheFormula) {
  const RopeParameters parameters{.theta = 500000.0, .llama3 = Llama3RopeScaling{}};
  const OwnedTensor table = Table(128, parameters);
  int kept = 0, divided = 0, between = 0;
  for (int64_t i = 0; i < 64; ++i) {
    const double plain = std::pow(500000.0, -static_cast<double>(i) / 64);
    const double scaled = Llama3Frequency(plain);
    (scaled == plain ? kept : scaled == plain / 8 ? divided : between) += 1;
    const float* row = table.view().as<float>() + 299 * 128;
    EXPECT_NEAR(row[i], std::cos(299 * scaled), 1e-6) << i;
    EXPECT_NEAR(row[64 + i], std::sin(299 * scaled), 1e-6) << i;
  }
  EXPECT_GT(kept, 20);
  EXPECT_GT(divided, 10);
  EXPECT_GT(between, 2);
}

TEST(RopeDeathTest, PositionOutsideTheTableIsAnInvariant) {
  const TestContext ctx;
  const OwnedTensor table = Table(8);
  OwnedTensor x = Zeros(DType::kFloat16, {1, 2, 8});
  for (const int32_t position : {-1, static_cast<int32_t>(kPositions)}) {
    if (kEmulated) {  // The host does not see it: the result says so.
      const OwnedTensor two = Zeros(DType::kFloat16, {2, 2, 8});
      OwnedTensor y = Zeros(DType::kFloat16, {2, 2, 8});
      for (const auto& rotate : {&Rope, &RopeBackward}) {
        rotate(ctx, two, test::Ints({position, 0}), table, y);
        for (int64_t i = 0; i < 32; ++i) EXPECT_EQ(std::isnan(test::LoadDouble(y, i)), i < 16);
      }
      continue;
    }
    EXPECT_DEATH(Rope(ctx, x, test::Ints({position}), table, x), "check failed");
    EXPECT_DEATH(RopeBackward(ctx, x, test::Ints({position}), table, x), "check failed");
  }
}

}  // namespace
}  // namespace halfstep
