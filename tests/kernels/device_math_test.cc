// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace halfstep::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kSmallest = std::numeric_limits<float>::denorm_min();

// Distance in units in the last place of an FP32 value near `want`, subnormals included.
double Ulps(float got, double want) {
  if (std::isinf(static_cast<float>(want))) {
    return got == static_cast<float>(want) ? 0 : kInfinity;
  }
  const double magnitude = std::max(std::abs(want), 0x1p-126);
  return std::abs(got - want) / std::exp2(std::floor(std::log2(magnitude)) - 23);
}

// visit(x) over values of every exponent and sign, subnormals, infinities and NaN among them.
template <class Visit>
void ForFloats(const Visit& visit) {
  constexpr uint32_t kStride = 4099;  // prime: no pattern of low bits is left out
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += kStride) {
    visit(std::bit_cast<float>(static_cast<uint32_t>(bits)));
  }
  for (uint32_t exponent = 0; exponent < 512; ++exponent) {
    for (const uint32_t mantissa : {0u, 1u, 0x3504f2u, 0x3504f3u, 0x3504f4u, 0x7fffffu}) {
      visit(std::bit_cast<float>(exponent << 23 | mantissa));
    }
  }
}

TEST(DeviceMathTest, ExpIsWithinOneUlpForEveryExponent) {
  double worst = 0;
  float worst_x = 0;
  const auto visit = [&](float x) {
    const float got = Exp(x);
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(got));
      return;
    }
    const double error = Ulps(got, std::exp(static_cast<double>(x)));
    if (error > worst) {
      worst = error;
      worst_x = x;
    }
  };
  ForFloats(visit);
  // The floats between are few per exponent where results are neither 1 nor an extreme.
  for (float x = -105; x < 90; x += 0.0007f) visit(x);
  EXPECT_LE(worst, 1) << worst_x;
}

TEST(DeviceMathTest, LogIsWithinOneUlpForEveryExponent) {
  double worst = 0;
  float worst_x = 0;
  const auto visit = [&](float x) {
    const float got = Log(x);
    if (std::isnan(x) || x < 0) {
      ASSERT_TRUE(std::isnan(got)) << x;
      return;
    }
    if (x == 0) {
      ASSERT_EQ(got, -kInfinity);
      return;
    }
    const double error = Ulps(got, std::log(static_cast<double>(x)));
    if (error > worst) {
      worst = error;
      worst_x = x;
    }
  };
  ForFloats(visit);
  for (float x = 0.5f; x < 2; x += 0x1p-18f) visit(x);
  EXPECT_LE(worst, 1) << worst_x;
}

TEST(DeviceMathTest, SpecialValuesAreExact) {
  EXPECT_EQ(Exp(0.0f), 1);
  EXPECT_EQ(Exp(-0.0f), 1);
  EXPECT_EQ(Exp(kInfinity), kInfinity);
  EXPECT_EQ(Exp(88.8f), kInfinity);
  EXPECT_EQ(Exp(-kInfinity), 0);
  EXPECT_EQ(Exp(-104.0f), 0);
  EXPECT_EQ(Exp(-103.5f), kSmallest);
  EXPECT_EQ(Log(1.0f), 0);
  EXPECT_EQ(Log(kInfinity), kInfinity);
  EXPECT_EQ(Log(-0.0f), -kInfinity);
  EXPECT_TRUE(std::isnan(Log(-kInfinity)));
  EXPECT_TRUE(std::isnan(Log(-kSmallest)));
  EXPECT_FLOAT_EQ(Log(kSmallest), -103.27893f);
}

}  // namespace
}  // namespace halfstep::cuda
