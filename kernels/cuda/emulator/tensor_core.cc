// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/emulator/tensor_core.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

namespace halfstep::cuda::emulator {
namespace {

constexpr int kDepth = 16;
constexpr int kKeptBits = 25;
// Below every exponent: that of a zero, which must not align anything.
constexpr int kNoExponent = -100000;

// value = mantissa * 2^(exponent - fraction bits), the sign in the mantissa.
struct Row {
  int32_t mantissa[kDepth];
  int32_t exponent[kDepth];
};

template <class T>
constexpr int kFractionBits = std::is_same_v<T, Float16> ? 10 : 7;
template <class T>
constexpr int kExponentBias = std::is_same_v<T, Float16> ? 15 : 127;

// Returns whether every element is finite.
template <class T>
bool Decode(const T (&values)[kDepth], Row& row) {
  constexpr int kFraction = kFractionBits<T>;
  constexpr int kExponentMask = (1 << (15 - kFraction)) - 1;
  bool finite = true;
  for (int k = 0; k < kDepth; ++k) {
    const int bits = values[k].bits;
    const int field = (bits >> kFraction) & kExponentMask;
    const int fraction = bits & ((1 << kFraction) - 1);
    const int magnitude = field != 0 ? fraction | (1 << kFraction) : fraction;
    finite &= field != kExponentMask;
    row.mantissa[k] = (bits & 0x8000) != 0 ? -magnitude : magnitude;
    row.exponent[k] = magnitude == 0 ? kNoExponent : (field != 0 ? field : 1) - kExponentBias<T>;
  }
  return finite;
}

float TruncateToFloat(int64_t sum, int exponent) {
  const double exact = std::ldexp(static_cast<double>(sum), exponent);  // |sum| < 2^34
  const float nearest = static_cast<float>(exact);
  const bool away = std::isfinite(nearest) && std::fabs(double{nearest}) > std::fabs(exact);
  return away ? std::nextafter(nearest, 0.0f) : nearest;
}

// Products of the rows and c, all finite.
template <class T>
float Dot(const Row& a, const Row& b, float c) {
  constexpr int kProductFraction = 2 * kFractionBits<T>;
  int32_t product[kDepth];
  int32_t exponent[kDepth];
  int32_t largest = kNoExponent;
  for (int k = 0; k < kDepth; ++k) {
    product[k] = a.mantissa[k] * b.mantissa[k];
    exponent[k] = a.exponent[k] + b.exponent[k];
    largest = std::max(largest, exponent[k]);
  }
  const uint32_t c_bits = std::bit_cast<uint32_t>(c);
  const int c_field = static_cast<int>((c_bits >> 23) & 255);
  const int64_t c_magnitude = (c_bits & 0x7fffff) | (c_field != 0 ? 0x800000 : 0);
  const int c_exponent = (c_field != 0 ? c_field : 1) - 127;
  if (c_magnitude != 0) largest = std::max(largest, c_exponent);

  // In units of 2^(largest - kKeptBits). A product has at most 22 bits in front of a shift of at
  // most 5, or 16 in front of 11, so that 16 of them fit 32 bits.
  int32_t sum = 0;
  for (int k = 0; k < kDepth; ++k) {
    const int32_t sign = product[k] >> 31;
    const uint32_t magnitude = static_cast<uint32_t>((product[k] ^ sign) - sign)
                               << (kKeptBits - kProductFraction);
    const uint32_t aligned = magnitude >> std::min(largest - exponent[k], 31);
    sum += (static_cast<int32_t>(aligned) ^ sign) - sign;
  }
  const int64_t c_aligned =
      c_magnitude == 0 ? 0
                       : (c_magnitude << (kKeptBits - 23)) >> std::min(largest - c_exponent, 62);
  return TruncateToFloat((c_bits >> 31) != 0 ? sum - c_aligned : sum + c_aligned,
                         largest - kKeptBits);
}

template <class T>
float DotWithInfinities(const T (&a)[kDepth], const T (&b)[kDepth], float c) {
  double sum = c;
  for (int k = 0; k < kDepth; ++k) sum += double{ToFloat(a[k])} * double{ToFloat(b[k])};
  return static_cast<float>(sum);
}

}  // namespace

template <class T>
void TensorCoreMultiplyAdd(const T (&a)[16][16], const T (&b)[8][16], float (&d)[16][8]) {
  Row a_rows[16], b_rows[8];
  bool a_finite[16], b_finite[8];
  for (int m = 0; m < 16; ++m) a_finite[m] = Decode(a[m], a_rows[m]);
  for (int n = 0; n < 8; ++n) b_finite[n] = Decode(b[n], b_rows[n]);
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      const bool finite = a_finite[m] && b_finite[n] && std::isfinite(d[m][n]);
      d[m][n] =
          finite ? Dot<T>(a_rows[m], b_rows[n], d[m][n]) : DotWithInfinities(a[m], b[n], d[m][n]);
    }
  }
}

template void TensorCoreMultiplyAdd<Float16>(const Float16 (&)[16][16], const Float16 (&)[8][16],
                                             float (&)[16][8]);
template void TensorCoreMultiplyAdd<BFloat16>(const BFloat16 (&)[16][16], const BFloat16 (&)[8][16],
                                              float (&)[16][8]);

}  // namespace halfstep::cuda::emulator
