// SPDX-License-Identifier: Apache-2.0
// Seeded permutations that depend on nothing but their key.
#pragma once

#include <cstdint>
#include <vector>

namespace halfstep {

// What a permutation is for; keeps equal ordinals of different uses apart.
enum class PermutationUse : uint32_t { kDataOrder = 1, kRewards = 2 };

struct PermutationKey {
  uint64_t seed = 0;
  PermutationUse use = PermutationUse::kDataOrder;
  uint64_t ordinal = 0;  // the epoch, the step
};

// A uniform permutation of 0 .. size - 1 (Fisher-Yates over Philox); size below 2^32.
std::vector<uint32_t> Permutation(uint32_t size, const PermutationKey& key);

}  // namespace halfstep
