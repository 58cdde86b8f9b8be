// SPDX-License-Identifier: Apache-2.0
// exp and log of device code: sequences of correctly rounded operations, so that the chip and the
// emulator give the same bits whatever their math libraries do. They are the polynomials of the CPU
// backend (kernels/cpu/simd-inl.h, after Cephes' expf and logf), operation by operation.
#pragma once

#include <cstdint>

#include "kernels/cuda/device_code.h"

namespace halfstep::cuda {

// exp(x) within 1 ulp, subnormal results included: 0 below about -104, +inf above about 88.7, NaN
// for NaN.
HALFSTEP_DEVICE float Exp(float x) {
  const bool vanishes = x < -104.0f;
  const float bounded = vanishes ? 0.0f : x;
  const float clamped = bounded < 89.0f ? bounded : 89.0f;
  // Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the low bits.
  constexpr float kShift = 0x1.8p23f;
  const float shifted = clamped * 1.44269504088896341f + kShift;
  const float n = shifted - kShift;
  float r = Fma(-n, 0.693359375f, clamped);
  r = Fma(-n, -2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = Fma(p, r, 1.3981999507e-3f);
  p = Fma(p, r, 8.3334519073e-3f);
  p = Fma(p, r, 4.1665795894e-2f);
  p = Fma(p, r, 1.6666665459e-1f);
  p = Fma(p, r, 5.0000001201e-1f);
  p = Fma(p, r * r, r) + 1.0f;
  // 2^n in two factors, so that subnormal results are rounded once and overflow reaches infinity.
  constexpr int32_t kShiftBits = 0x4b400000;
  const int32_t exponent = static_cast<int32_t>(FloatToBits(shifted)) - kShiftBits;
  const int32_t half = exponent >> 1;
  const float scale1 = BitsToFloat(static_cast<uint32_t>(half + 127) << 23);
  const float scale2 = BitsToFloat(static_cast<uint32_t>(exponent - half + 127) << 23);
  const float result = vanishes ? 0.0f : p * scale1 * scale2;
  return x != x ? x : result;
}

// log(x) within 1 ulp, subnormals included: -inf for 0, +inf for +inf, NaN below 0 and for NaN.
HALFSTEP_DEVICE float Log(float x) {
  constexpr uint32_t kInfinityBits = 0x7f800000;
  constexpr uint32_t kNaNBits = 0x7fc00000;
  const bool tiny = x < 0x1p-126f;
  const float normal = tiny ? x * 0x1p25f : x;
  // normal = 2^e * (1 + z), 1 + z in [sqrt(1/2), sqrt(2)).
  constexpr uint32_t kSqrtHalfBits = 0x3f3504f3;
  const uint32_t offset = FloatToBits(normal) - kSqrtHalfBits;
  const int32_t exponent = (static_cast<int32_t>(offset) >> 23) - (tiny ? 25 : 0);
  const float e = static_cast<float>(exponent);
  const float z = BitsToFloat((offset & 0x7fffff) + kSqrtHalfBits) - 1.0f;
  const float z2 = z * z;
  float p = 7.0376836292e-2f;
  p = Fma(p, z, -1.1514610310e-1f);
  p = Fma(p, z, 1.1676998740e-1f);
  p = Fma(p, z, -1.2420140846e-1f);
  p = Fma(p, z, 1.4249322787e-1f);
  p = Fma(p, z, -1.6668057665e-1f);
  p = Fma(p, z, 2.0000714765e-1f);
  p = Fma(p, z, -2.4999993993e-1f);
  p = Fma(p, z, 3.3333331174e-1f);
  float y = p * z * z2;
  y = Fma(e, -2.12194440e-4f, y);
  y = Fma(-z2, 0.5f, y);
  float result = Fma(e, 0.693359375f, z + y);
  if (x == 0.0f) result = -BitsToFloat(kInfinityBits);
  if (x < 0.0f) result = BitsToFloat(kNaNBits);
  return x < BitsToFloat(kInfinityBits) ? result : x;  // +inf and NaN stay what they are
}

}  // namespace halfstep::cuda
