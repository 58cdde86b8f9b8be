// SPDX-License-Identifier: Apache-2.0
#include "learner_server/data/permutation.h"

#include <numeric>
#include <utility>

#include "kernels/philox.h"

namespace halfstep {
namespace {

// Keeps these draws apart from those of sampling, which use the bare seed as their key.
constexpr uint32_t kKeyTag[2] = {0x5045524du, 0x55544521u};

// Uniform in [0, bound), with a bias below bound / 2^64.
uint32_t Draw(const PermutationKey& key, uint32_t draw, uint32_t bound) {
  const PhiloxKey philox_key{{static_cast<uint32_t>(key.seed) ^ kKeyTag[0],
                              static_cast<uint32_t>(key.seed >> 32) ^ kKeyTag[1]}};
  const PhiloxCounter counter{{draw, static_cast<uint32_t>(key.use),
                               static_cast<uint32_t>(key.ordinal),
                               static_cast<uint32_t>(key.ordinal >> 32)}};
  const auto words = Philox4x32(counter, philox_key);
  const uint64_t uniform = (uint64_t{words[0]} << 32) | words[1];
  return static_cast<uint32_t>((static_cast<unsigned __int128>(uniform) * bound) >> 64);
}

}  // namespace

std::vector<uint32_t> Permutation(uint32_t size, const PermutationKey& key) {
  std::vector<uint32_t> order(size);
  std::iota(order.begin(), order.end(), 0u);
  for (uint32_t last = size; last > 1; --last) {
    std::swap(order[last - 1], order[Draw(key, last - 1, last)]);
  }
  return order;
}

}  // namespace halfstep
