// SPDX-License-Identifier: Apache-2.0
// Byte-pair encoding of one piece of text: bytes become tokens, then the pair of neighbours with
// the lowest rank is merged, the leftmost first, until no pair has a rank.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace halfstep {

// Immutable once filled; const members are thread-safe.
class Bpe {
 public:
  struct Merge {
    int32_t rank = 0;  // lower goes first
    int32_t id = 0;    // of the token that the pair becomes
  };

  std::array<int32_t, 256> byte_ids{};                  // the token of each byte
  absl::flat_hash_map<uint64_t, Merge> merges;          // by PairKey
  absl::flat_hash_map<std::string, int32_t> whole_ids;  // by bytes; pieces that need no merging

  static uint64_t PairKey(int32_t left, int32_t right) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) |
           static_cast<uint32_t>(right);
  }

  // Appends the tokens of `piece`. Takes time in proportion to its size times its logarithm.
  void Encode(absl::string_view piece, std::vector<int32_t>& out) const;
};

}  // namespace halfstep
