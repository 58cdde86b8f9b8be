// SPDX-License-Identifier: Apache-2.0
// How a block finds an edge in the order of keys without sorting: a descent over the bits of the
// keys, 11 at a time, in a histogram in shared memory. Weights are integers, so sums are exact, and
// the order in which threads add them does not matter.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/device_code.h"

namespace halfstep::cuda {

inline constexpr int kDigitBits = 11;
inline constexpr int kBins = 1 << kDigitBits;

// Shared memory of one selection at a time.
struct SelectMemory {
  // Weights of the bins, the bin of the largest digit first. Shared memory adds 32 bits at a time.
  Pointer<unsigned> low, high;
  Pointer<uint64_t> of_warps;
  Pointer<uint64_t> found;  // digit, weight of its items, wanted part of that
};
inline constexpr size_t kSelectBytes =
    2 * kBins * sizeof(unsigned) + (kWarpSize + 3) * sizeof(uint64_t);

// In shared memory from `offset` on, a multiple of 8.
HALFSTEP_DEVICE SelectMemory SelectMemoryAt(size_t offset) {
  const size_t behind_bins = offset + 2 * kBins * sizeof(unsigned);
  return {SharedMemory<unsigned>(offset, kBins),
          SharedMemory<unsigned>(offset + kBins * sizeof(unsigned), kBins),
          SharedMemory<uint64_t>(behind_bins, kWarpSize),
          SharedMemory<uint64_t>(behind_bins + kWarpSize * sizeof(uint64_t), 3)};
}

HALFSTEP_DEVICE void AddToBin(const SelectMemory& memory, int bin, uint64_t weight) {
  const auto low = static_cast<unsigned>(weight);
  auto high = static_cast<unsigned>(weight >> 32);
  // How often the lower half wraps does not depend on the order either.
  if (AtomicAdd(memory.low + bin, low) + low < low) ++high;
  if (high != 0) AtomicAdd(memory.high + bin, high);
}
HALFSTEP_DEVICE uint64_t BinWeight(const SelectMemory& memory, int bin) {
  return uint64_t{memory.high[bin]} << 32 | memory.low[bin];
}

struct BlockPrefix {
  uint64_t before;  // sum over the threads before this one
  uint64_t total;
};

// Contains one barrier; `of_warps` may be written again behind another.
HALFSTEP_DEVICE BlockPrefix PrefixSum(Pointer<uint64_t> of_warps, uint64_t value) {
  uint64_t sum = value;
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const uint64_t other = Shuffle(sum, Lane() - offset);
    if (Lane() >= offset) sum += other;
  }
  if (Lane() == kWarpSize - 1) of_warps[Warp()] = sum;
  SyncBlock();
  BlockPrefix prefix{sum - value, 0};
  for (int warp = 0; warp < BlockThreads() / kWarpSize; ++warp) {
    if (warp == Warp()) prefix.before += prefix.total;
    prefix.total += of_warps[warp];
  }
  return prefix;
}

struct Selected {
  uint32_t key = 0;
  uint64_t weight = 0;  // of the items with that key
  uint64_t wanted = 0;  // part of it that is needed to reach the target, 1 to `weight`
};

// The key at which the weights of the items, added from the largest key down, reach
// target(total weight), which lies between 1 and that total. for_each(add) calls
// add(key, weight) for each item of this thread, the same ones in each of three calls. All threads
// of the block call it together and get the same.
template <class ForEach, class Target>
HALFSTEP_DEVICE Selected SelectKey(const SelectMemory& memory, const ForEach& for_each,
                                   const Target& target) {
  Selected selected;
  for (int high = 32; high > 0;) {
    const int low = high > kDigitBits ? high - kDigitBits : 0;
    for (int bin = ThreadIndex(); bin < kBins; bin += BlockThreads()) {
      memory.low[bin] = 0;
      memory.high[bin] = 0;
    }
    SyncBlock();
    for_each([&](uint32_t key, uint64_t weight) {
      if (uint64_t{key ^ selected.key} >> high != 0) return;
      AddToBin(memory, kBins - 1 - static_cast<int>(key >> low & (kBins - 1)), weight);
    });
    SyncBlock();
    const int own_bins = kBins / BlockThreads();
    int bin = ThreadIndex() * own_bins;
    uint64_t own = 0;
    for (int i = 0; i < own_bins; ++i) own += BinWeight(memory, bin + i);
    BlockPrefix prefix = PrefixSum(memory.of_warps, own);
    if (high == 32) selected.wanted = target(prefix.total);
    // True for one thread.
    if (prefix.before < selected.wanted && selected.wanted <= prefix.before + own) {
      uint64_t weight = BinWeight(memory, bin);
      while (prefix.before + weight < selected.wanted) {
        prefix.before += weight;
        weight = BinWeight(memory, ++bin);
      }
      memory.found[0] = static_cast<uint64_t>(kBins - 1 - bin);
      memory.found[1] = weight;
      memory.found[2] = selected.wanted - prefix.before;
    }
    SyncBlock();
    selected.key |= static_cast<uint32_t>(memory.found[0]) << low;
    selected.weight = memory.found[1];
    selected.wanted = memory.found[2];
    high = low;
  }
  return selected;
}

}  // namespace halfstep::cuda
