// SPDX-License-Identifier: Apache-2.0
// How kernels that give a warp to a row read and write it: lane l takes elements [8 g, 8 g + 8) for
// g = l, l + 32, .... Which lane adds what, and in which order, follows from the width alone;
// whether the accesses are 16 bytes wide does not change it.
#pragma once

#include <cstdint>

#include "kernels/cuda/device_code.h"

namespace halfstep::cuda {

inline constexpr int kGroup = 8;

// Whether the rows of `width` elements from `data` on can be read 16 bytes at a time.
template <class T>
bool RowsAreAligned(Pointer<T> data, int64_t width) {
  return reinterpret_cast<uintptr_t>(data.data()) % 16 == 0 && width % kGroup == 0;
}

// v = p[i .. i + 8), zeros from `count` elements on.
template <bool aligned, class T>
HALFSTEP_DEVICE void LoadGroup(Pointer<const T> p, int64_t i, int64_t count, float (&v)[kGroup]) {
  if constexpr (aligned) {
    constexpr int kCount = Pack<T>::kCount;
#pragma unroll
    for (int part = 0; part < kGroup / kCount; ++part) {
      const Pack<T> pack = LoadPack(p, i + part * kCount);
#pragma unroll
      for (int j = 0; j < kCount; ++j) v[part * kCount + j] = Widen(pack.values[j]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) v[j] = j < count ? Widen(p[i + j]) : 0.0f;
  }
}

// p[i .. i + 8) = round(v), as far as `count`; `round` is [](float) -> T.
template <bool aligned, class T, class RoundTo>
HALFSTEP_DEVICE void StoreGroup(Pointer<T> p, int64_t i, int64_t count, const float (&v)[kGroup],
                                const RoundTo& round) {
  if constexpr (aligned) {
    constexpr int kCount = Pack<T>::kCount;
#pragma unroll
    for (int part = 0; part < kGroup / kCount; ++part) {
      Pack<T> pack;
#pragma unroll
      for (int j = 0; j < kCount; ++j) pack.values[j] = round(v[part * kCount + j]);
      StorePack(p, i + part * kCount, pack);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (j < count) p[i + j] = round(v[j]);
    }
  }
}

}  // namespace halfstep::cuda
