// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation/block_allocator.h"

#include "kernels/check.h"

namespace halfstep {

BlockAllocator::BlockAllocator(int64_t blocks) : references_(blocks, 0) {
  free_.reserve(blocks);
  for (int64_t block = blocks - 1; block >= 0; --block) {
    free_.push_back(static_cast<int32_t>(block));
  }
}

int32_t BlockAllocator::Allocate() {
  HALFSTEP_CHECK(!free_.empty());
  const int32_t block = free_.back();
  free_.pop_back();
  references_[block] = 1;
  return block;
}

void BlockAllocator::Retain(int32_t block) {
  HALFSTEP_CHECK_GT(references_[block], 0);
  ++references_[block];
}

void BlockAllocator::Release(int32_t block) {
  HALFSTEP_CHECK_GT(references_[block], 0);
  if (--references_[block] == 0) free_.push_back(block);
}

}  // namespace halfstep
