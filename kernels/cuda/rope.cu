// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding: a thread per group of pairs (i, i + head_dim / 2).
#include "kernels/ops/rope.h"

#include "kernels/cuda/backend.h"
#include "kernels/cuda/flat_access.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.h"
#include "kernels/cuda/row_access.h"
#include "kernels/dispatch_float.h"

namespace halfstep::cuda {
namespace {

struct Extent {
  int64_t rows;  // tokens * heads
  uint32_t heads;
  int64_t half;       // pairs of a head
  uint32_t groups;    // of pairs of a head
  int64_t positions;  // of the table
};

// x and y may be the same memory: a thread reads its pairs before it writes them.
template <bool backward, bool aligned, class T>
HALFSTEP_KERNEL void RotateGroups(Extent extent, Pointer<const T> x,
                                  Pointer<const int32_t> positions, Pointer<const float> table,
                                  Pointer<T> y, Pointer<unsigned long long> saturation) {
  const GroupPlace place = PlaceInRows(static_cast<uint32_t>(GridThread()), extent.groups);
  if (place.row >= extent.rows) return;
  const int64_t i = int64_t{place.group} * kGroup;
  const int64_t rest = extent.half - i;
  const int64_t at = int64_t{place.row} * 2 * extent.half + i;
  float a[kGroup], b[kGroup], cosine[kGroup], sine[kGroup];
  LoadGroup<aligned>(x, at, rest, a);
  LoadGroup<aligned>(x, at + extent.half, rest, b);
  const int64_t position = positions[place.row / extent.heads];
  if (position >= 0 && position < extent.positions) {
    const int64_t row = position * 2 * extent.half + i;
    LoadGroup<aligned>(table, row, rest, cosine);
    LoadGroup<aligned>(table, row + extent.half, rest, sine);
  } else {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) cosine[j] = sine[j] = QuietNaN();
  }
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    const float s = backward ? -sine[j] : sine[j];
    const float first = Fma(-b[j], s, a[j] * cosine[j]);
    b[j] = Fma(a[j], s, b[j] * cosine[j]);
    a[j] = first;
  }
  int saturated = 0;
  const auto round = [&](float value) {
    return backward ? Round<T>(value) : RoundSaturated<T>(value, saturated);
  };
  StoreGroup<aligned>(y, at, rest, a, round);
  StoreGroup<aligned>(y, at + extent.half, rest, b, round);
  CountSaturated(saturation, saturated);
}

template <bool backward>
void Rotate(const ExecContext& ctx, ConstTensor x, ConstTensor positions, ConstTensor table,
            Tensor y) {
  const int64_t half = x.dim(2) / 2;
  const Extent extent{x.dim(0) * x.dim(1), static_cast<uint32_t>(x.dim(1)), half,
                      static_cast<uint32_t>(CeilDivide(half, kGroup)), table.dim(0)};
  DispatchFloat(x.dtype(), [&]<class T>() {
    const auto from = PointerTo<const T>(x);
    const auto angles = PointerTo<const float>(table);
    const auto to = PointerTo<T>(y);
    const bool aligned =
        RowsAreAligned(from, half) && RowsAreAligned(angles, half) && RowsAreAligned(to, half);
    Launch(ctx,
           FlatShape(backward ? "RopeBackward" : "Rope", CountGroups(extent.rows, extent.groups)),
           aligned ? RotateGroups<backward, true, T> : RotateGroups<backward, false, T>, extent,
           from, PointerTo<const int32_t>(positions), angles, to, SaturationCounter(ctx));
  });
}

}  // namespace

void Rope(const ExecContext& ctx, ConstTensor x, ConstTensor positions, ConstTensor table,
          Tensor y) {
  Rotate<false>(ctx, x, positions, table, y);
}

void RopeBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor positions, ConstTensor table,
                  Tensor dx) {
  Rotate<true>(ctx, dy, positions, table, dx);
}

}  // namespace halfstep::cuda
