// SPDX-License-Identifier: Apache-2.0
// BlockAllocator: which blocks of the key-value cache are in use, and by how many sequences.
#pragma once

#include <cstdint>
#include <vector>

namespace halfstep {

// Reference-counted block ids in [0, total()). The pool never grows. Not thread-safe.
class BlockAllocator {
 public:
  explicit BlockAllocator(int64_t blocks);

  int64_t total() const { return static_cast<int64_t>(references_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }

  // A block with one reference. REQUIRES: free() > 0.
  int32_t Allocate();
  // One more holder of a block in use.
  void Retain(int32_t block);
  // One holder less; the last one frees the block.
  void Release(int32_t block);

  int32_t references(int32_t block) const { return references_[block]; }

 private:
  std::vector<int32_t> references_;  // by block; 0: free
  std::vector<int32_t> free_;        // a stack: the block freed last is warm in the caches
};

}  // namespace halfstep
