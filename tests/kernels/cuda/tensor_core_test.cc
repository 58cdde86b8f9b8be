// SPDX-License-Identifier: Apache-2.0
// The emulator's matrix instruction against the rule that its header states, computed one element
// at a time with exact integers.
#include "kernels/cuda/emulator/tensor_core.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <type_traits>

#include "kernels/dtype.h"

namespace halfstep::cuda::emulator {
namespace {

using BigInteger = __int128;

// The exponent that the hardware aligns by: of a subnormal that of the smallest normal number.
int ExponentOf(double x, int smallest) { return std::max(std::ilogb(x), smallest); }

// x in units of 2^unit, toward zero. Exact until then: x has at most 24 bits.
BigInteger InUnits(double x, int unit) {
  return static_cast<BigInteger>(std::trunc(std::ldexp(x, -unit)));
}

// sum * 2^unit in FP32, toward zero.
float Truncated(BigInteger sum, int unit) {
  BigInteger magnitude = sum < 0 ? -sum : sum;
  // The 24 bits of a normal number, fewer of a subnormal one.
  while (magnitude >= (BigInteger{1} << 24) || (magnitude != 0 && unit < -149)) {
    magnitude >>= 1;
    ++unit;
  }
  const double value = std::ldexp(static_cast<double>(magnitude), unit);
  const float largest = std::numeric_limits<float>::infinity();
  const float result =
      value > std::numeric_limits<float>::max() ? largest : static_cast<float>(value);
  return sum < 0 ? -result : result;
}

float Expected(const float (&a)[16], const float (&b)[16], float c, int smallest) {
  constexpr int kNone = std::numeric_limits<int>::min();
  constexpr int kBits = 25;
  double ieee = c;
  int largest = c == 0 ? kNone : ExponentOf(c, -126);
  for (int k = 0; k < 16; ++k) {
    ieee += double{a[k]} * double{b[k]};
    if (a[k] == 0 || b[k] == 0) continue;
    largest = std::max(largest, ExponentOf(a[k], smallest) + ExponentOf(b[k], smallest));
  }
  if (!std::isfinite(ieee)) return static_cast<float>(ieee);
  if (largest == kNone) return 0;
  BigInteger sum = InUnits(c, largest - kBits);
  for (int k = 0; k < 16; ++k) sum += InUnits(double{a[k]} * double{b[k]}, largest - kBits);
  return Truncated(sum, largest - kBits);
}

template <class T>
class TensorCoreTest : public testing::Test {
 protected:
  static constexpr bool kIsFloat16 = std::is_same_v<T, Float16>;
  static constexpr int kSmallest = kIsFloat16 ? -14 : -126;

  static T FromBits(uint32_t bits) {
    T value;
    value.bits = static_cast<uint16_t>(bits);
    return value;
  }
  static bool IsFinite(T value) { return std::isfinite(ToFloat(value)); }

  // Runs a matrix of problems whose values come from the two functions.
  void Check(const std::function<T()>& factor, const std::function<float()>& sum) {
    for (int round = 0; round < 40; ++round) {
      T a[16][16], b[8][16];
      float d[16][8], got[16][8];
      for (auto& row : a) std::generate(std::begin(row), std::end(row), factor);
      for (auto& row : b) std::generate(std::begin(row), std::end(row), factor);
      for (auto& row : d) std::generate(std::begin(row), std::end(row), sum);
      std::copy(&d[0][0], &d[0][0] + 128, &got[0][0]);
      TensorCoreMultiplyAdd(a, b, got);
      for (int m = 0; m < 16; ++m) {
        for (int n = 0; n < 8; ++n) {
          float left[16], right[16];
          for (int k = 0; k < 16; ++k) {
            left[k] = ToFloat(a[m][k]);
            right[k] = ToFloat(b[n][k]);
          }
          const float want = Expected(left, right, d[m][n], kSmallest);
          if (std::isnan(want)) {
            ASSERT_TRUE(std::isnan(got[m][n])) << m << ", " << n;
          } else {
            ASSERT_EQ(std::bit_cast<uint32_t>(got[m][n]), std::bit_cast<uint32_t>(want))
                << "round " << round << ", " << m << ", " << n << ": " << got[m][n] << ", want "
                << want;
          }
        }
      }
    }
  }

  uint32_t Below(uint32_t bound) {
    return std::uniform_int_distribution<uint32_t>(0, bound - 1)(engine_);
  }
  float Normal(float deviation) { return std::normal_distribution<float>(0, deviation)(engine_); }
  // Any bits that are no Inf and no NaN.
  T AnyFinite() {
    for (;;) {
      const T value = FromBits(Below(65536));
      if (IsFinite(value)) return value;
    }
  }
  float AnySum() {
    for (;;) {
      const float value = std::bit_cast<float>((Below(65536) << 16) | Below(65536));
      if (std::isfinite(value)) return value;
    }
  }

  std::mt19937 engine_{1};
};

using Factors = testing::Types<Float16, BFloat16>;
TYPED_TEST_SUITE(TensorCoreTest, Factors);

TYPED_TEST(TensorCoreTest, Normal) {
  this->Check([&] { return FromFloat<TypeParam>(this->Normal(1)); },
              [&] { return this->Normal(4); });
}

TYPED_TEST(TensorCoreTest, EveryMagnitude) {
  this->Check([&] { return this->AnyFinite(); }, [&] { return this->AnySum(); });
  // Sums as large as the products, which else seldom meet.
  this->Check([&] { return this->AnyFinite(); },
              [&] { return std::ldexp(this->Normal(1), static_cast<int>(this->Below(60)) - 30); });
}

TYPED_TEST(TensorCoreTest, Subnormal) {
  const uint32_t fraction = TestFixture::kIsFloat16 ? 1 << 10 : 1 << 7;
  const auto subnormal = [&] {
    return TestFixture::FromBits(this->Below(2 * fraction) | (this->Below(2) << 15));
  };
  this->Check(subnormal, [&] { return std::bit_cast<float>(this->Below(1 << 24)); });
  this->Check(
      [&] { return this->Below(2) != 0 ? subnormal() : FromFloat<TypeParam>(this->Normal(1)); },
      [&] { return std::ldexp(this->Normal(1), -20); });
  // Products below the smallest FP32 subnormal (BF16 only), and sums that truncate to it.
  this->Check([&] { return FromFloat<TypeParam>(std::ldexp(this->Normal(1), -72)); },
              [&] { return std::bit_cast<float>(this->Below(8) | (this->Below(2) << 31)); });
}

// Products and the sum are powers of two of either sign, so that they cancel.
TYPED_TEST(TensorCoreTest, Cancelling) {
  const auto power = [&] {
    const float sign = this->Below(2) != 0 ? 1.0f : -1.0f;
    return std::ldexp(sign, static_cast<int>(this->Below(6)) - 3);
  };
  this->Check([&] { return FromFloat<TypeParam>(power()); }, [&] { return power(); });
  this->Check([&] { return FromFloat<TypeParam>(power()); },
              [&] { return power() + std::ldexp(power(), -22); });
}

TYPED_TEST(TensorCoreTest, Huge) {
  const float scale = TestFixture::kIsFloat16 ? 3e4f : 1e19f;
  this->Check([&] { return FromFloat<TypeParam>(this->Normal(scale / 2)); },
              [&] { return this->Normal(1e38f); });
}

TYPED_TEST(TensorCoreTest, Zero) {
  this->Check([&] { return TestFixture::FromBits(this->Below(2) << 15); },
              [&] { return this->Below(2) != 0 ? 0.0f : this->Normal(1); });
  this->Check(
      [&] { return this->Below(2) != 0 ? TypeParam{} : FromFloat<TypeParam>(this->Normal(1)); },
      [&] { return this->Below(2) != 0 ? -0.0f : this->Normal(1e-6f); });
}

TYPED_TEST(TensorCoreTest, InfiniteAndNan) {
  const float infinity = std::numeric_limits<float>::infinity();
  this->Check(
      [&] {
        const bool rare = this->Below(40) == 0;
        const float special = this->Below(3) == 0 ? std::nanf("") : infinity;
        return FromFloat<TypeParam>(rare ? (this->Below(2) != 0 ? -special : special)
                                         : this->Normal(1));
      },
      [&] { return this->Below(20) == 0 ? infinity : this->Normal(1); });
}

}  // namespace
}  // namespace halfstep::cuda::emulator
