// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "kernels/reference/optimizer.h"
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

struct State {
  State(DType dtype, DType weights_dtype, int64_t count)
      : master(Zeros(dtype, {count})),
        first(Zeros(dtype, {count})),
        second(Zeros(dtype, {count})),
        weights(Zeros(weights_dtype, {count})) {}
  AdamWTensors tensors(ConstTensor gradient) { return {gradient, master, first, second, weights}; }
  OwnedTensor master, first, second, weights;
};

void Start(State& state, uint64_t seed) {
  Random random(seed);
  const OwnedTensor master = random.Normal(DType::kFloat32, state.master.view().shape(), 0.05);
  for (int64_t i = 0; i < master.view().elements(); ++i) {
    test::StoreDouble(state.master, i, test::LoadDouble(master, i));
  }
}

TEST(AdamWTest, TenStepsMatchReference) {
  const TestContext ctx(2);
  for (const DType dtype : test::kRealDTypes) {
    for (const int64_t count : {int64_t{1}, int64_t{17}, Many(70001, 2001)}) {
      State got(DType::kFloat32, dtype, count), want(DType::kFloat64, dtype, count);
      Start(got, 1);
      Start(want, 1);
      Random random(2);
      AdamWOptions options{.learning_rate = 3e-3f, .weight_decay = 0.1f, .inverse_scale = 0x1p-16f};
      for (options.step = 1; options.step <= 10; ++options.step) {
        options.clip_factor = options.step % 3 == 0 ? 0.37f : 1.0f;
        const OwnedTensor gradient = random.Normal(DType::kFloat32, {count}, 50);
        AdamW(ctx, got.tensors(gradient), options);
        reference::AdamW(want.tensors(AsDouble(gradient)), options);
      }
      const std::string name = std::string(Name(dtype)) + " " + std::to_string(count);
      EXPECT_TRUE(Close(got.master, want.master, tolerance::kAdamW, name + " master"));
      EXPECT_TRUE(Close(got.first, want.first, tolerance::kAdamW, name + " first moment"));
      EXPECT_TRUE(Close(got.second, want.second, tolerance::kAdamW, name + " second moment"));
      EXPECT_TRUE(SameBits(got.weights, As(dtype, got.master), name + " weights"));
    }
  }
}

TEST(AdamWTest, TinyGradientsTakeFullSteps) {
  // Gradients of 1e-10 would vanish beside an epsilon of 1e-8.
  const TestContext ctx;
  State state(DType::kFloat32, DType::kFloat32, 4);
  OwnedTensor gradient = Zeros(DType::kFloat32, {4});
  for (int64_t i = 0; i < 3; ++i) gradient.view().as<float>()[i] = i == 1 ? -1e-10f : 1e-10f;
  AdamW(ctx, state.tensors(gradient), {.learning_rate = 0.5f});
  EXPECT_NEAR(test::LoadDouble(state.master, 0), -0.5, 1e-4);
  EXPECT_NEAR(test::LoadDouble(state.master, 1), 0.5, 1e-4);
  EXPECT_EQ(test::LoadDouble(state.master, 3), 0);  // no gradient, no step, no 0 / 0
}

TEST(AdamWTest, BitsDoNotDependOnThreadsOrTarget) {
  Random random(3);
  const int64_t count = Many(100003, 3003);
  const OwnedTensor gradient = random.Normal(DType::kFloat32, {count});
  for (const DType dtype : test::kRealDTypes) {
    test::ExpectSameBitsOnEveryMachine(Name(dtype), [&](const ExecContext& ctx) {
      State state(DType::kFloat32, dtype, count);
      Start(state, 4);
      for (int64_t step = 1; step <= 3; ++step) {
        AdamW(ctx, state.tensors(gradient),
              {.learning_rate = 1e-3f, .weight_decay = 0.01f, .step = step, .clip_factor = 0.3f});
      }
      std::vector<OwnedTensor> out;
      out.push_back(std::move(state.master));
      out.push_back(std::move(state.first));
      out.push_back(std::move(state.second));
      out.push_back(std::move(state.weights));
      return out;
    });
  }
}

TEST(GradientStatisticsTest, MatchesPlainSums) {
  const TestContext ctx(2);
  // The largest is more than one pass of all blocks of the CUDA backend.
  for (const int64_t count :
       {int64_t{0}, int64_t{1}, int64_t{15}, int64_t{4096}, int64_t{4097}, Many(100003, 550001)}) {
    Random random(5);
    const OwnedTensor gradient = random.Normal(DType::kFloat32, {count}, 1e4);
    double squares = 0, largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double g = test::LoadDouble(gradient, i);
      squares += g * g;
      largest = std::max(largest, std::abs(g));
    }
    const GradientStatistics got = ComputeGradientStatistics(ctx, gradient);
    EXPECT_NEAR(got.squared_norm, squares, squares * tolerance::kSquaredNorm) << count;
    EXPECT_EQ(got.largest, largest) << count;
    EXPECT_EQ(got.non_finite, 0) << count;
  }
}

TEST(GradientStatisticsTest, CountsNonFiniteAndKeepsTheLargestFinite) {
  const TestContext ctx;
  Random random(6);
  OwnedTensor gradient = random.Normal(DType::kFloat32, {9001});
  float* g = gradient.view().as<float>();
  g[0] = g[9000] = std::numeric_limits<float>::infinity();
  g[5000] = -std::numeric_limits<float>::infinity();
  g[4096] = std::nanf("");
  g[77] = -1e30f;
  const GradientStatistics got = ComputeGradientStatistics(ctx, gradient);
  EXPECT_EQ(got.non_finite, 4);
  EXPECT_EQ(got.largest, 1e30f);
}

TEST(GradientStatisticsTest, SquaresBeyondFp32DoNotOverflow) {
  const TestContext ctx;
  OwnedTensor gradient = Zeros(DType::kFloat32, {20});
  std::fill_n(gradient.view().as<float>(), 20, 1e30f);
  const GradientStatistics got = ComputeGradientStatistics(ctx, gradient);
  EXPECT_NEAR(got.squared_norm / 2e61, 1, 1e-6);
}

TEST(GradientStatisticsTest, BitsDoNotDependOnThreadsOrTarget) {
  Random random(7);
  const OwnedTensor gradient = random.Normal(DType::kFloat32, {Many(200003, 20003)});
  test::ExpectSameBitsOnEveryMachine("statistics", [&](const ExecContext& ctx) {
    std::vector<OwnedTensor> out;
    out.push_back(Zeros(DType::kFloat64, {2}));
    const GradientStatistics got = ComputeGradientStatistics(ctx, gradient);
    out.back().view().as<double>()[0] = got.squared_norm;
    out.back().view().as<double>()[1] = got.largest;
    return out;
  });
}

// Memory of one record or more as the operations take it.
template <class Record>
OwnedTensor Records(int64_t count) {
  return Zeros(DType::kUInt8, {count, static_cast<int64_t>(sizeof(Record))});
}
template <class Record>
Record Read(ConstTensor x) {
  Record record;
  std::memcpy(&record, x.data(), sizeof(record));
  return record;
}

TEST(DecideGradientTest, IsWhatTheHostWouldDecide) {
  const TestContext ctx(2);
  Random random(8);
  const OwnedTensor gradient = random.Normal(DType::kFloat32, {5003}, 900);
  const GradientStatistics on_host = ComputeGradientStatistics(ctx, gradient);
  const double norm = std::sqrt(on_host.squared_norm) * 0x1p-10f;  // about 62
  for (const double clip_norm : {0.0, 1.0, 100.0}) {
    OwnedTensor statistics = Records<GradientStatistics>(1),
                decision = Records<GradientDecision>(1);
    MeasureGradient(ctx, gradient, statistics);
    DecideGradient(ctx, statistics, {.inverse_scale = 0x1p-10f, .clip_norm = clip_norm}, decision);
    const auto got = Read<GradientDecision>(decision);
    EXPECT_EQ(got.statistics.squared_norm, on_host.squared_norm);
    EXPECT_EQ(got.statistics.largest, on_host.largest);
    EXPECT_EQ(got.skip, 0);
    EXPECT_EQ(got.norm, norm);
    EXPECT_EQ(got.inverse_scale, 0x1p-10f);
    EXPECT_EQ(got.clip_factor, clip_norm == 1 ? static_cast<float>(1 / norm) : 1.0f);
  }
}

TEST(DecideGradientTest, PutsTheStatisticsOfPartsTogether) {
  const TestContext ctx;
  Random random(9);
  OwnedTensor gradient = random.Normal(DType::kFloat32, {3000});
  gradient.view().as<float>()[2500] = -77;
  for (const bool overflow : {false, true}) {
    if (overflow) gradient.view().as<float>()[10] = std::numeric_limits<float>::infinity();
    OwnedTensor parts = Records<GradientStatistics>(3), decision = Records<GradientDecision>(1);
    double squares = 0;
    for (int64_t i = 0; i < 3; ++i) {
      const ConstTensor part = gradient.view().Rows(1000 * i, 1000);
      MeasureGradient(ctx, part, parts.view().Rows(i, 1));
      squares += ComputeGradientStatistics(ctx, part).squared_norm;
    }
    DecideGradient(ctx, parts, {.inverse_scale = 0.5f, .clip_norm = 1}, decision);
    const auto got = Read<GradientDecision>(decision);
    EXPECT_EQ(got.statistics.largest, 77);
    EXPECT_EQ(got.statistics.non_finite, overflow ? 1 : 0);
    EXPECT_EQ(got.skip, overflow ? 1 : 0);
    EXPECT_EQ(got.norm, overflow ? 0 : std::sqrt(squares) * 0.5f);
  }
}

TEST(AdamWTest, FollowsADecision) {
  const TestContext ctx;
  for (const DType dtype : test::kRealDTypes) {
    Random random(10);
    OwnedTensor gradient = random.Normal(DType::kFloat32, {1001}, 50);
    OwnedTensor statistics = Records<GradientStatistics>(1),
                decision = Records<GradientDecision>(1);
    const GradientLimits limits{.inverse_scale = 0x1p-4f, .clip_norm = 2};
    State got(DType::kFloat32, dtype, 1001), want(DType::kFloat32, dtype, 1001);
    Start(got, 11);
    Start(want, 11);
    AdamWTensors tensors = got.tensors(gradient);
    tensors.decision = std::as_const(decision).view();
    AdamWOptions options{.learning_rate = 1e-2f, .weight_decay = 0.1f, .inverse_scale = 77};
    MeasureGradient(ctx, gradient, statistics);
    DecideGradient(ctx, statistics, limits, decision);
    AdamW(ctx, tensors, options);
    options.inverse_scale = limits.inverse_scale;
    options.clip_factor = Read<GradientDecision>(decision).clip_factor;
    EXPECT_LT(options.clip_factor, 0.1f);
    AdamW(ctx, want.tensors(gradient), options);
    const auto expect_same = [&](const std::string& when) {
      EXPECT_TRUE(SameBits(got.master, want.master, when + " master"));
      EXPECT_TRUE(SameBits(got.first, want.first, when + " first moment"));
      EXPECT_TRUE(SameBits(got.second, want.second, when + " second moment"));
      EXPECT_TRUE(SameBits(got.weights, want.weights, when + " weights"));
    };
    expect_same("applied");
    gradient.view().as<float>()[1000] = std::nanf("");
    MeasureGradient(ctx, gradient, statistics);
    DecideGradient(ctx, statistics, limits, decision);
    AdamW(ctx, tensors, options);
    expect_same("skipped");
  }
}

}  // namespace
}  // namespace halfstep
