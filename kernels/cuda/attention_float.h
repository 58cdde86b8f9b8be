// SPDX-License-Identifier: Apache-2.0
// What the FP32 kernels of attention share: products of two rows by one lane, and a weighted sum of
// rows by a warp.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/device_code.h"

namespace halfstep::cuda {

inline constexpr int kFloatWarps = 4;

// One chain over ascending elements.
HALFSTEP_DEVICE float Dot(Pointer<const float> a, Pointer<const float> b, int count) {
  float sum = 0;
  for (int d = 0; d < count; ++d) sum = Fma(a[d], b[d], sum);
  return sum;
}

// A row of at most kMaxHeadDim sums, held by the lanes of a warp: lane l has columns l, l + 32,
// ....
struct FloatColumns {
  static constexpr int kCount = static_cast<int>(kMaxHeadDim) / kWarpSize;
  float value[kCount] = {};

  HALFSTEP_DEVICE void Scale(float factor) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) value[i] *= factor;
  }
  HALFSTEP_DEVICE void Add(float weight, Pointer<const float> row, int width) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int d = Lane() + i * kWarpSize;
      if (d < width) value[i] = Fma(weight, row[d], value[i]);
    }
  }
  HALFSTEP_DEVICE void Store(float factor, Pointer<float> row, int width) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int d = Lane() + i * kWarpSize;
      if (d < width) row[d] = value[i] * factor;
    }
  }
};

}  // namespace halfstep::cuda
