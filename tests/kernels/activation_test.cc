// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/activation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/reference/activation.h"
#include "tests/kernels/op_test.h"

namespace halfstep {
namespace {

using test::AsDouble;
using test::Close;
using test::Random;
using test::TestContext;
using test::Zeros;

TEST(SwiGluTest, MatchesReferenceForEveryDTypeAndShape) {
  const TestContext ctx;
  for (const DType dtype : test::kRealDTypes) {
    for (const int64_t width : {1, 15, 16, 17, 48, 100, 512}) {
      for (const int64_t tokens : {0, 1, 45}) {
        Random random(1);
        const OwnedTensor gate_up = random.Normal(dtype, {tokens, 2 * width}, 2);
        const OwnedTensor dy = random.Normal(dtype, {tokens, width});
        OwnedTensor y = Zeros(dtype, {tokens, width}), dx = Zeros(dtype, {tokens, 2 * width});
        SwiGlu(ctx, gate_up, y);
        SwiGluBackward(ctx, dy, gate_up, dx);
        OwnedTensor want = Zeros(DType::kFloat64, {tokens, width});
        OwnedTensor dwant = Zeros(DType::kFloat64, {tokens, 2 * width});
        reference::SwiGlu(AsDouble(gate_up), want);
        reference::SwiGluBackward(AsDouble(dy), AsDouble(gate_up), dwant);
        const std::string name = std::string(Name(dtype)) + " width " + std::to_string(width) +
                                 " tokens " + std::to_string(tokens);
        const double slack = tokens * width < 512 ? 1.6 : 1;
        EXPECT_TRUE(Close(y, want, slack * tolerance::RowOpForward(dtype), name + " y"));
        EXPECT_TRUE(Close(dx, dwant, slack * tolerance::RowOpBackward(dtype), name + " dx"));
      }
    }
  }
}

TEST(SwiGluTest, ReferenceMatchesFiniteDifferences) {
  Random random(2);
  OwnedTensor gate_up = random.Normal(DType::kFloat64, {3, 10});
  const OwnedTensor dy = random.Normal(DType::kFloat64, {3, 5});
  OwnedTensor y = Zeros(DType::kFloat64, {3, 5}), dx = Zeros(DType::kFloat64, {3, 10});
  reference::SwiGluBackward(dy, gate_up, dx);
  const auto loss = [&] {
    reference::SwiGlu(gate_up, y);
    return test::Inner(y, dy);
  };
  EXPECT_TRUE(test::MatchesFiniteDifference(loss, gate_up, dx, "dgate_up"));
}

TEST(SwiGluTest, BitsDoNotDependOnThreadsOrTarget) {
  for (const DType dtype : test::kRealDTypes) {
    Random random(3);
    const OwnedTensor gate_up = random.Normal(dtype, {311, 2 * 70}, 2);
    const OwnedTensor dy = random.Normal(dtype, {311, 70});
    test::ExpectSameBitsOnEveryMachine(Name(dtype), [&](const ExecContext& ctx) {
      std::vector<OwnedTensor> out;
      out.push_back(Zeros(dtype, {311, 70}));
      SwiGlu(ctx, gate_up, out.back());
      out.push_back(Zeros(dtype, {311, 140}));
      SwiGluBackward(ctx, dy, gate_up, out.back());
      return out;
    });
  }
}

TEST(SwiGluTest, ExtremeGatesGiveZeroOrTheProduct) {
  const TestContext ctx;
  OwnedTensor gate_up = Zeros(DType::kFloat32, {1, 6}), y = Zeros(DType::kFloat32, {1, 3});
  const float values[] = {-1000, 1000, 0, 3, 3, 3};
  std::copy_n(values, 6, gate_up.view().as<float>());
  SwiGlu(ctx, gate_up, y);
  EXPECT_EQ(y.view().as<float>()[0], 0);
  EXPECT_EQ(y.view().as<float>()[1], 3000);
  EXPECT_EQ(y.view().as<float>()[2], 0);
  OwnedTensor dy = Zeros(DType::kFloat32, {1, 3}), dx = Zeros(DType::kFloat32, {1, 6});
  std::fill_n(dy.view().as<float>(), 3, 1.0f);
  SwiGluBackward(ctx, dy, gate_up, dx);
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(std::isfinite(dx.view().as<float>()[i])) << i;
}

TEST(SwiGluTest, ForwardSaturatesAndCountsWhileBackwardOverflows) {
  const TestContext ctx;
  OwnedTensor gate_up = Zeros(DType::kFloat16, {5, 2}), y = Zeros(DType::kFloat16, {5, 1});
  for (int64_t i = 0; i < 10; ++i) test::StoreDouble(gate_up, i, i < 6 ? 400 : 1);
  SwiGlu(ctx, gate_up, y);
  EXPECT_EQ(ctx.saturated(), 3);
  EXPECT_EQ(test::LoadDouble(y, 2), 65504);
  OwnedTensor dy = Zeros(DType::kFloat16, {5, 1}), dx = Zeros(DType::kFloat16, {5, 2});
  test::StoreDouble(dy, 0, 60000);
  SwiGluBackward(ctx, dy, gate_up, dx);
  EXPECT_TRUE(std::isinf(test::LoadDouble(dx, 0)));
  EXPECT_EQ(ctx.saturated(), 3);
}

}  // namespace
}  // namespace halfstep
