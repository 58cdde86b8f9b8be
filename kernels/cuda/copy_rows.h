// SPDX-License-Identifier: Apache-2.0
// Copies of rows as bytes: a warp per row, in the widest units that addresses and widths allow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "kernels/cuda/device_code.h"
#include "kernels/cuda/launch.h"
#include "kernels/tensor.h"

namespace halfstep::cuda {

inline constexpr int kCopyWarps = 8;

struct alignas(16) Bytes16 {
  uint32_t words[4];
};

// Calls f.operator()<Unit>() with the widest of Bytes16, uint32_t, uint16_t and uint8_t that
// divides all of `sizes`, which are addresses and counts of bytes.
template <class F>
void DispatchUnit(std::initializer_list<uintptr_t> sizes, F&& f) {
  uintptr_t all = 0;
  for (const uintptr_t size : sizes) all |= size;
  if (all % 16 == 0) return f.template operator()<Bytes16>();
  if (all % 4 == 0) return f.template operator()<uint32_t>();
  if (all % 2 == 0) return f.template operator()<uint16_t>();
  return f.template operator()<uint8_t>();
}

inline uintptr_t Address(ConstTensor x) { return reinterpret_cast<uintptr_t>(x.data()); }
inline int64_t RowBytes(ConstTensor x) {
  return x.dim(1) * static_cast<int64_t>(SizeOf(x.dtype()));
}

// The bytes of a tensor as units, const where the tensor is.
template <class Unit, class Byte>
using UnitOf = std::conditional_t<std::is_const_v<Byte>, const Unit, Unit>;
template <class Unit, class Byte>
Pointer<UnitOf<Unit, Byte>> UnitsOf(BasicTensor<Byte> x) {
  HALFSTEP_CHECK(x.device().type == DeviceType::kCuda);
  return {static_cast<UnitOf<Unit, Byte>*>(x.data()),
          static_cast<int64_t>(x.bytes() / sizeof(Unit))};
}

// All bits set: a NaN in each of the floating-point types.
template <class Unit>
HALFSTEP_DEVICE Unit AllOnes() {
  if constexpr (sizeof(Unit) == 16) {
    return {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}};
  } else {
    return static_cast<Unit>(-1);
  }
}

struct GatherExtent {
  int64_t rows;       // of what is written
  int64_t from_rows;  // of what is read
  int64_t units;      // of a row
};

// to[r, :] = from[index[r], :], all bits set where there is no such row.
template <class Unit>
HALFSTEP_KERNEL void GatherUnits(GatherExtent extent, Pointer<const Unit> from,
                                 Pointer<const int32_t> index, Pointer<Unit> to) {
  const int64_t row = int64_t{BlockX()} * kCopyWarps + Warp();
  if (row >= extent.rows) return;
  const int64_t source = index[row];
  const bool valid = source >= 0 && source < extent.from_rows;
  for (int64_t u = Lane(); u < extent.units; u += kWarpSize) {
    to[row * extent.units + u] = valid ? from[source * extent.units + u] : AllOnes<Unit>();
  }
}

// y[r, :] = x[index[r], :], all bits set where x has no such row. x, y: [rows, width] of one dtype;
// index: int32 [rows of y].
inline void Gather(const ExecContext& ctx, const char* kernel, ConstTensor x, ConstTensor index,
                   Tensor y) {
  const int64_t bytes = RowBytes(x);
  if (bytes == 0) return;
  DispatchUnit({Address(x), Address(y), static_cast<uintptr_t>(bytes)}, [&]<class Unit>() {
    const GatherExtent extent{y.dim(0), x.dim(0), bytes / static_cast<int64_t>(sizeof(Unit))};
    Launch(ctx, {kernel, CeilDivide(extent.rows, kCopyWarps), 1, kCopyWarps * kWarpSize},
           GatherUnits<Unit>, extent, UnitsOf<Unit>(x), PointerTo<const int32_t>(index),
           UnitsOf<Unit>(y));
  });
}

}  // namespace halfstep::cuda
