// SPDX-License-Identifier: Apache-2.0
// How kernels that give each thread one group of elements share them out: thread i of the grid has
// group i. One group is 16 or 32 bytes of a tensor, so a multiprocessor full of threads keeps
// enough bytes under way for the bandwidth of the memory, which is all that these kernels wait for.
#pragma once

#include <cstdint>

#include "kernels/check.h"
#include "kernels/cuda/device_code.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_access.h"

namespace halfstep::cuda {

inline constexpr int kFlatThreads = 256;

inline LaunchShape FlatShape(const char* kernel, int64_t groups) {
  return {kernel, CeilDivide(groups, kFlatThreads), 1, kFlatThreads};
}

// The number of this thread in the grid.
HALFSTEP_DEVICE int64_t GridThread() { return int64_t{BlockX()} * BlockThreads() + ThreadIndex(); }

// ---- flat tensors: group i is elements [8 i, 8 i + 8)

// Whether `data` can be read 16 bytes at a time.
template <class T>
bool IsAligned(Pointer<T> data) {
  return reinterpret_cast<uintptr_t>(data.data()) % 16 == 0;
}

// As LoadGroup, where only a whole group of an aligned tensor is read 16 bytes at a time.
template <class T>
HALFSTEP_DEVICE void LoadFlat(bool aligned, Pointer<const T> p, int64_t i, int64_t count,
                              float (&v)[kGroup]) {
  if (aligned && count >= kGroup) {
    LoadGroup<true>(p, i, count, v);
  } else {
    LoadGroup<false>(p, i, count, v);
  }
}
template <class T, class RoundTo>
HALFSTEP_DEVICE void StoreFlat(bool aligned, Pointer<T> p, int64_t i, int64_t count,
                               const float (&v)[kGroup], const RoundTo& round) {
  if (aligned && count >= kGroup) {
    StoreGroup<true>(p, i, count, v, round);
  } else {
    StoreGroup<false>(p, i, count, v, round);
  }
}

// ---- rows of groups, numbered through

// The place of group `index` where each row has `groups` of them.
struct GroupPlace {
  uint32_t row;
  uint32_t group;
};
HALFSTEP_DEVICE GroupPlace PlaceInRows(uint32_t index, uint32_t groups) {
  const uint32_t row = index / groups;
  return {row, index - row * groups};
}

// The number of groups in all, which PlaceInRows counts in 32 bits.
inline int64_t CountGroups(int64_t rows, int64_t groups_of_row) {
  HALFSTEP_CHECK_LT(rows * groups_of_row, int64_t{1} << 31);
  return rows * groups_of_row;
}

}  // namespace halfstep::cuda
