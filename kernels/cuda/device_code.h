// SPDX-License-Identifier: Apache-2.0
// What device code is written against: the same source is compiled by nvcc for the GPU and by g++
// for the emulator (emulator/emulator.h), and must give the same bits on both.
//
// Rules that make this possible:
// * kernels are started by Launch (launch.h), never by <<<>>>;
// * thread and block indices, barriers, warp collectives, asynchronous copies, matrix instructions
//   and atomics come from the wrappers below; all 32 lanes of a warp call a collective together;
// * no thread returns before the last barrier of its block;
// * global and shared memory are reached through Pointer, which the emulator checks;
// * sums in floating point have a fixed order; no atomics on them;
// * products and sums are rounded one by one (nvcc -fmad=false, g++ -ffp-contract=off); a fused
//   multiply-add is written as Fma.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

#if defined(__CUDACC__)
#include "kernels/cuda/nvcc_primitives.h"
#else
#include "kernels/cuda/emulator/primitives.h"
#endif

namespace halfstep::cuda {

inline constexpr int kWarpSize = 32;

HALFSTEP_DEVICE int Lane() { return ThreadIndex() % kWarpSize; }
HALFSTEP_DEVICE int Warp() { return ThreadIndex() / kWarpSize; }

// 16 bytes, the widest access of one thread, or fewer.
template <class T, int count = 16 / sizeof(T)>
struct alignas(count * sizeof(T)) Pack {
  static constexpr int kCount = count;
  T values[kCount];
};

// p[i .. i + Pack::kCount); the address must be a multiple of the size of the pack, which the
// emulator checks.
template <class T>
HALFSTEP_DEVICE Pack<T> LoadPack(Pointer<const T> p, int64_t i) {
  return *PackAddress<const Pack<T>>(p, i);
}
template <class T, int count>
HALFSTEP_DEVICE void StorePack(Pointer<T> p, int64_t i, const Pack<T, count>& pack) {
  *PackAddress<Pack<T, count>>(p, i) = pack;
}

// Two elements, as a lane holds them of the result of a matrix instruction.
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T low, high;
};

// p[i] and p[i + 1]; the address must be a multiple of the size of a pair.
template <class T>
HALFSTEP_DEVICE Pair<T> LoadPair(Pointer<const T> p, int64_t i) {
  return *PackAddress<const Pair<T>>(p, i);
}
template <class T>
HALFSTEP_DEVICE void StorePair(Pointer<T> p, int64_t i, Pair<T> pair) {
  *PackAddress<Pair<T>>(p, i) = pair;
}

// A forward store: FP16 saturates at +-65504 and is counted, NaN stays NaN; other types as they
// are.
template <class T>
HALFSTEP_DEVICE T RoundSaturated(float value, int& saturated) {
  if constexpr (IsFloat16<T>) {
    if (value > kFloat16Max) {
      value = kFloat16Max;
      ++saturated;
    } else if (value < -kFloat16Max) {
      value = -kFloat16Max;
      ++saturated;
    }
  }
  return Round<T>(value);
}

// Adds what a thread has counted to the stream's counter (Stream::TakeSaturatedStores), if there is
// one.
HALFSTEP_DEVICE void CountSaturated(Pointer<unsigned long long> counter, int saturated) {
  if (saturated != 0 && !counter.empty())
    AtomicAdd(counter, static_cast<unsigned long long>(saturated));
}

// Sum over the lanes of a warp, the same in all of them, in the order of a butterfly: the lane
// index does not enter, so the result is a function of the 32 values in their places.
template <class T>
HALFSTEP_DEVICE T WarpSum(T value) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value += ShuffleXor(value, mask);
  return value;
}
template <class T>
HALFSTEP_DEVICE T WarpMax(T value) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    const T other = ShuffleXor(value, mask);
    value = other > value ? other : value;
  }
  return value;
}

}  // namespace halfstep::cuda
