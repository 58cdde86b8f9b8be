// SPDX-License-Identifier: Apache-2.0
// Copies of bytes, columns and rows.
#include <algorithm>
#include <span>
#include <type_traits>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/copy_rows.h"
#include "kernels/cuda/launch.h"
#include "kernels/ops/elementwise.h"

namespace halfstep::cuda {
namespace {

constexpr int kThreads = kCopyWarps * kWarpSize;

// A block of columns that is a matrix of its own.
template <class Unit>
struct ColumnPart {
  Pointer<Unit> data;
  int64_t units;   // of a row of the part
  int64_t offset;  // of the part within a row of the whole
};

// What one launch moves; more parts than this take further launches.
constexpr int kParts = 4;
template <class Unit>
struct ColumnParts {
  ColumnPart<Unit> part[kParts];
};

struct ColumnExtent {
  int64_t rows;
  int64_t units;  // of a row of the whole
};

// Of Whole and Part the one that is not const is written.
template <class Whole, class Part>
HALFSTEP_KERNEL void MoveColumns(ColumnExtent extent, Pointer<Whole> whole,
                                 HALFSTEP_INDEXED ColumnParts<Part> parts) {
  const int64_t row = int64_t{BlockX()} * kCopyWarps + Warp();
  if (row >= extent.rows) return;
  const ColumnPart<Part>& part = parts.part[BlockY()];
  const int64_t at = row * extent.units + part.offset;
  for (int64_t u = Lane(); u < part.units; u += kWarpSize) {
    if constexpr (std::is_const_v<Whole>) {
      part.data[row * part.units + u] = whole[at + u];
    } else {
      whole[at + u] = part.data[row * part.units + u];
    }
  }
}

// All addresses and widths in one number that a unit must divide.
template <class Byte>
uintptr_t AllSizes(ConstTensor whole, std::span<const BasicTensor<Byte>> parts) {
  uintptr_t all = Address(whole);
  for (const BasicTensor<Byte>& part : parts) {
    all |= Address(part) | static_cast<uintptr_t>(RowBytes(part));
  }
  return all;
}

template <class WholeByte, class PartByte>
void MoveAllColumns(const ExecContext& ctx, const char* kernel, BasicTensor<WholeByte> whole,
                    std::span<const BasicTensor<PartByte>> parts) {
  DispatchUnit({AllSizes(whole, parts)}, [&]<class Unit>() {
    using Whole = UnitOf<Unit, WholeByte>;
    using Part = UnitOf<Unit, PartByte>;
    constexpr int64_t kUnit = sizeof(Unit);
    const ColumnExtent extent{whole.dim(0), RowBytes(whole) / kUnit};
    int64_t offset = 0;
    for (size_t first = 0; first < parts.size(); first += kParts) {
      const size_t count = std::min(parts.size() - first, size_t{kParts});
      ColumnParts<Part> some{};
      for (size_t i = 0; i < count; ++i) {
        const auto& part = parts[first + i];
        some.part[i] = {UnitsOf<Unit>(part), RowBytes(part) / kUnit, offset};
        offset += RowBytes(part) / kUnit;
      }
      Launch(ctx,
             {kernel, CeilDivide(extent.rows, kCopyWarps), static_cast<int64_t>(count), kThreads},
             MoveColumns<Whole, Part>, extent, UnitsOf<Unit>(whole), some);
    }
  });
}

struct ScatterExtent {
  int64_t rows;   // of y
  int64_t count;  // of x
  int64_t units;  // of a row
};

// Each warp looks for its row of y among those of x: y is written once, where clearing it first
// would write most of it twice.
template <class Unit>
HALFSTEP_KERNEL void ScatterUnits(ScatterExtent extent, Pointer<const Unit> x,
                                  Pointer<const int32_t> index, Pointer<Unit> y) {
  const int64_t row = int64_t{BlockX()} * kCopyWarps + Warp();
  if (row >= extent.rows) return;
  int64_t begin = 0;
  for (int64_t end = extent.count; begin < end;) {
    const int64_t middle = (begin + end) / 2;
    if (index[middle] < row) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  const bool taken = begin < extent.count && index[begin] == row;
  for (int64_t u = Lane(); u < extent.units; u += kWarpSize) {
    y[row * extent.units + u] = taken ? x[begin * extent.units + u] : Unit{};
  }
}

}  // namespace

void Copy(const ExecContext& ctx, ConstTensor x, Tensor y) {
  if (y.bytes() == 0) return;
  CopyBytes(ctx.stream->native(), y.data(), x.data(), y.bytes());
}

void FillZero(const ExecContext& ctx, Tensor y) {
  if (y.bytes() == 0) return;
  HALFSTEP_CHECK(y.device().type == DeviceType::kCuda);
  ZeroBytes(ctx.stream->native(), y.data(), y.bytes());
}

void SplitColumns(const ExecContext& ctx, ConstTensor x, std::span<const Tensor> outs) {
  MoveAllColumns(ctx, "SplitColumns", x, outs);
}

void ConcatColumns(const ExecContext& ctx, std::span<const ConstTensor> ins, Tensor y) {
  MoveAllColumns(ctx, "ConcatColumns", y, ins);
}

void GatherRows(const ExecContext& ctx, ConstTensor x, ConstTensor rows, Tensor y) {
  Gather(ctx, "GatherRows", x, rows, y);
}

void ScatterRows(const ExecContext& ctx, ConstTensor x, ConstTensor rows, Tensor y) {
  const int64_t bytes = RowBytes(y);
  if (bytes == 0) return;
  DispatchUnit({Address(x), Address(y), static_cast<uintptr_t>(bytes)}, [&]<class Unit>() {
    const ScatterExtent extent{y.dim(0), x.dim(0), bytes / static_cast<int64_t>(sizeof(Unit))};
    Launch(ctx, {"ScatterRows", CeilDivide(extent.rows, kCopyWarps), 1, kThreads},
           ScatterUnits<Unit>, extent, UnitsOf<Unit>(x), PointerTo<const int32_t>(rows),
           UnitsOf<Unit>(y));
  });
}

}  // namespace halfstep::cuda
