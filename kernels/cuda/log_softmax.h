// SPDX-License-Identifier: Apache-2.0
// The one row function behind every log-prob on CUDA: LmHeadLogProb and SampleTokens get equal bits
// from equal logits. A block of RowThreads(vocab) threads takes a row; thread t reads the packs of
// four logits t, t + threads, ..., so the order of every sum follows from the vocabulary alone, and
// a row is read once whatever its length.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/device_code.h"
#include "kernels/cuda/math.h"

namespace halfstep::cuda {

// Few threads have enough to do with a small vocabulary, and a large one hides its loads behind
// many.
constexpr int RowThreads(int64_t vocab) { return vocab <= 4096 ? 128 : 512; }

inline constexpr int kRowPack = 4;
inline constexpr float kLowestLogit = -0x1.fffffep127f;

// Calls visit(i, v, count) for every pack of this thread: v[j] is row[i + j] for j below `count`
// (less than four at the end of the row only) and 0 from there on.
template <bool aligned, class Visit>
HALFSTEP_DEVICE void ForEachPack(Pointer<const float> row, int vocab, const Visit& visit) {
  for (int i = ThreadIndex() * kRowPack; i < vocab; i += BlockThreads() * kRowPack) {
    float v[kRowPack];
    if constexpr (aligned) {
      const Pack<float> pack = LoadPack(row, i);
#pragma unroll
      for (int j = 0; j < kRowPack; ++j) v[j] = pack.values[j];
      visit(i, v, kRowPack);
    } else {
      const int left = vocab - i;
#pragma unroll
      for (int j = 0; j < kRowPack; ++j) v[j] = j < left ? row[i + j] : 0.0f;
      visit(i, v, left < kRowPack ? left : kRowPack);
    }
  }
}

// Of z = logits * inverse_temperature over one row; the same in every thread of the block.
struct LogSoftmax {
  float inverse_temperature;
  float max;       // of z
  float log_sum;   // log of sum exp(z - max)
  float mean_gap;  // sum of p (z - max)
  bool finite;     // false: some logit is infinite or NaN, and nothing else here means anything

  HALFSTEP_DEVICE float LogProb(float logit) const {
    return finite ? (logit * inverse_temperature - max) - log_sum : NaN();
  }
  HALFSTEP_DEVICE float LogSumExp() const { return finite ? max + log_sum : NaN(); }
  HALFSTEP_DEVICE float Entropy() const { return finite ? log_sum - mean_gap : NaN(); }

 private:
  static HALFSTEP_DEVICE float NaN() { return BitsToFloat(0x7fc00000u); }
};

// Sums over a part of a row, relative to the largest value of that part.
struct SoftmaxSums {
  float max = kLowestLogit;
  float sum = 0;       // of exp(z - max)
  float weighted = 0;  // of exp(z - max) (z - max)

  // Makes them relative to `larger`, which is at least `max`.
  HALFSTEP_DEVICE void MoveTo(float larger) {
    const float gap = max - larger;
    const float factor = Exp(gap);
    // An infinite gap would give 0 * inf.
    weighted = factor == 0 ? 0.0f : Fma(sum, gap, weighted) * factor;
    sum *= factor;
    max = larger;
  }
  HALFSTEP_DEVICE void Add(const float (&z)[kRowPack], int count) {
    float largest = z[0];
#pragma unroll
    for (int j = 1; j < kRowPack; ++j) {
      if (j < count && z[j] > largest) largest = z[j];
    }
    if (largest > max) MoveTo(largest);
#pragma unroll
    for (int j = 0; j < kRowPack; ++j) {
      if (j < count) {
        const float gap = z[j] - max;
        const float e = Exp(gap);
        sum += e;
        weighted = Fma(e, gap < kLowestLogit ? kLowestLogit : gap, weighted);
      }
    }
  }
  // Over the lanes of a warp, the same in all of them.
  HALFSTEP_DEVICE void MergeWarp() {
    MoveTo(WarpMax(max));
    sum = WarpSum(sum);
    weighted = WarpSum(weighted);
  }
};

// Shared memory of ReduceLogits, from byte 0 on; it may be used again behind a barrier.
inline constexpr size_t kLogSoftmaxBytes = 3 * kWarpSize * sizeof(float);

// All threads of the block call it together. visit(i, z, count) sees every pack of this thread on
// the way, z as ForEachPack has the logits.
template <bool aligned, class Visit>
HALFSTEP_DEVICE LogSoftmax ReduceLogits(Pointer<const float> row, int vocab,
                                        float inverse_temperature, const Visit& visit) {
  SoftmaxSums sums;
  float poison = 0;  // becomes NaN where a logit is not finite
  ForEachPack<aligned>(row, vocab, [&](int i, const float(&v)[kRowPack], int count) {
    float z[kRowPack];
#pragma unroll
    for (int j = 0; j < kRowPack; ++j) {
      poison = Fma(v[j], 0.0f, poison);
      z[j] = v[j] * inverse_temperature;
    }
    sums.Add(z, count);
    visit(i, z, count);
  });
  // An infinite maximum marks the row; temperature may also make one of a finite logit.
  if (poison != 0) sums.max = BitsToFloat(0x7f800000u);
  sums.MergeWarp();

  const Pointer<float> of_warps = SharedMemory<float>(0, 3 * kWarpSize);
  if (Lane() == 0) {
    of_warps[Warp()] = sums.max;
    of_warps[kWarpSize + Warp()] = sums.sum;
    of_warps[2 * kWarpSize + Warp()] = sums.weighted;
  }
  SyncBlock();
  SoftmaxSums merged;
  if (Lane() < BlockThreads() / kWarpSize) {
    merged.max = of_warps[Lane()];
    merged.sum = of_warps[kWarpSize + Lane()];
    merged.weighted = of_warps[2 * kWarpSize + Lane()];
  }
  merged.MergeWarp();
  // Without a sum, every z is -inf.
  const bool finite = merged.max <= -kLowestLogit && merged.sum > 0;
  return {inverse_temperature, merged.max, Log(merged.sum), merged.weighted / merged.sum, finite};
}

}  // namespace halfstep::cuda
