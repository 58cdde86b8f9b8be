// SPDX-License-Identifier: Apache-2.0
// How the keys and values of a sequence come into shared memory, from a packed tensor or from the
// pages of a cache, for forward attention on tensor cores.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention_forward.h"
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/device_code.h"

namespace halfstep::cuda {

// Brings the keys and values of one head of a sequence into shared memory, block by block: while
// one is used, the next is under way, where two fit. Used by all threads of a block together.
template <class T, int kWidth>
class KeyBlocks {
 public:
  using Tile = SharedTile<T, kWidth>;
  static constexpr int kPage = static_cast<int>(kKvBlockTokens);
  static_assert(kKeyBlock == 2 * kPage);
  static constexpr int kStages = kWidth > 128 ? 1 : 2;
  static constexpr int64_t kTileBytes = Tile::Bytes(kKeyBlock);
  static constexpr int64_t kBytes = 2 * kStages * kTileBytes;

  HALFSTEP_DEVICE KeyBlocks(const AttentionArguments<T>& a, int64_t byte_offset, int sequence,
                            int begin, int context)
      : a_(a), byte_offset_(byte_offset), sequence_(sequence), begin_(begin), context_(context) {}

  // To be called once, with the loads of the queries in the open group.
  HALFSTEP_DEVICE void Start(int kv_head, int block, int end) {
    kv_head_ = kv_head;
    end_ = end;
    FindPages(block);
    if (kStages == 2) {
      Load(block);
      FindPages(block + 1);
    }
    CommitCopies();
  }

  // Block `block` is there when this returns, and what was used before is not needed any more.
  HALFSTEP_DEVICE void Arrive(int block) {
    if (kStages == 2) {
      WaitCopies<0>();
      SyncBlock();
      if (block + 1 < end_) {
        Load(block + 1);
        FindPages(block + 2);
      }
      CommitCopies();
    } else {
      SyncBlock();
      Load(block);
      FindPages(block + 1);
      CommitCopies();
      WaitCopies<0>();
      SyncBlock();
    }
  }

  HALFSTEP_DEVICE Tile keys(int block) const {
    return Tile(byte_offset_ + block % kStages * 2 * kTileBytes, kKeyBlock);
  }
  HALFSTEP_DEVICE Tile values(int block) const {
    return Tile(byte_offset_ + (block % kStages * 2 + 1) * kTileBytes, kKeyBlock);
  }

 private:
  // Asked for one block ahead, so that no copy waits for the table.
  HALFSTEP_DEVICE void FindPages(int block) {
    const int pages = (context_ + kPage - 1) / kPage;
    first_page_ = a_.kv.Page(sequence_, 2 * block, pages);
    second_page_ = a_.kv.Page(sequence_, 2 * block + 1, pages);
  }
  HALFSTEP_DEVICE void Load(int block) {
    const auto row_at = [&](Pointer<const T> data, int r) {
      const int position = block * kKeyBlock + r;
      const int page = r < kPage ? first_page_ : second_page_;
      return RowPlace<const T>{data + a_.kv.Offset(page, begin_, kv_head_, position),
                               position < context_};
    };
    LoadTile<kKeyBlock>(keys(block), a_.kv.head_dim, a_.kv_aligned,
                        [&](int r) { return row_at(a_.kv.keys, r); });
    LoadTile<kKeyBlock>(values(block), a_.kv.head_dim, a_.kv_aligned,
                        [&](int r) { return row_at(a_.kv.values, r); });
  }

  const AttentionArguments<T>& a_;
  const int64_t byte_offset_;
  const int sequence_;
  const int begin_;
  const int context_;
  int kv_head_ = 0;
  int end_ = 0;
  int first_page_ = 0;
  int second_page_ = 0;
};

}  // namespace halfstep::cuda
