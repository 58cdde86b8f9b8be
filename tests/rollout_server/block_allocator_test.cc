// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation/block_allocator.h"

#include <gtest/gtest.h>

#include <set>

namespace halfstep {
namespace {

TEST(BlockAllocatorTest, HandsOutEveryBlockOnce) {
  BlockAllocator allocator(5);
  std::set<int32_t> blocks;
  while (allocator.free() > 0) blocks.insert(allocator.Allocate());
  EXPECT_EQ(blocks, (std::set<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(allocator.total(), 5);
}

TEST(BlockAllocatorTest, FreesABlockWithItsLastHolder) {
  BlockAllocator allocator(1);
  const int32_t block = allocator.Allocate();
  allocator.Retain(block);
  EXPECT_EQ(allocator.references(block), 2);
  allocator.Release(block);
  EXPECT_EQ(allocator.free(), 0);
  allocator.Release(block);
  EXPECT_EQ(allocator.free(), 1);
  EXPECT_EQ(allocator.Allocate(), block);
}

TEST(BlockAllocatorDeathTest, RefusesToReleaseAFreeBlock) {
  BlockAllocator allocator(2);
  const int32_t block = allocator.Allocate();
  allocator.Release(block);
  EXPECT_DEATH(allocator.Release(block), "references_");
  EXPECT_DEATH(allocator.Retain(block), "references_");
}

}  // namespace
}  // namespace halfstep
