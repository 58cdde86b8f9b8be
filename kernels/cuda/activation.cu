// SPDX-License-Identifier: Apache-2.0
// SwiGLU, a thread per group of columns.
#include "kernels/ops/activation.h"

#include "kernels/cuda/backend.h"
#include "kernels/cuda/flat_access.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.h"
#include "kernels/cuda/row_access.h"
#include "kernels/dispatch_float.h"
#include "kernels/dispatch_or_float.h"

namespace halfstep::cuda {
namespace {

struct Extent {
  int64_t rows;
  int64_t width;
  uint32_t groups;  // of a row
};

Extent ExtentOf(ConstTensor y) {
  return {y.dim(0), y.dim(1), static_cast<uint32_t>(CeilDivide(y.dim(1), kGroup))};
}

template <bool aligned, class X, class T>
HALFSTEP_KERNEL void SwiGluGroups(Extent extent, Pointer<const X> gate_up, Pointer<T> y,
                                  Pointer<unsigned long long> saturation) {
  const GroupPlace place = PlaceInRows(static_cast<uint32_t>(GridThread()), extent.groups);
  const int64_t row = place.row;
  if (row >= extent.rows) return;
  const int64_t i = int64_t{place.group} * kGroup;
  const int64_t rest = extent.width - i;
  float gate[kGroup], up[kGroup];
  LoadGroup<aligned>(gate_up, 2 * row * extent.width + i, rest, gate);
  LoadGroup<aligned>(gate_up, (2 * row + 1) * extent.width + i, rest, up);
  // The division, not a product with a sigmoid: one rounding less.
#pragma unroll
  for (int j = 0; j < kGroup; ++j) up[j] = gate[j] / (1.0f + Exp(-gate[j])) * up[j];
  int saturated = 0;
  StoreGroup<aligned>(y, row * extent.width + i, rest, up,
                      [&](float value) { return RoundSaturated<T>(value, saturated); });
  CountSaturated(saturation, saturated);
}

template <bool aligned, class T>
HALFSTEP_KERNEL void SwiGluGroupsBackward(Extent extent, Pointer<const T> dy,
                                          Pointer<const T> gate_up, Pointer<T> dgate_up) {
  const GroupPlace place = PlaceInRows(static_cast<uint32_t>(GridThread()), extent.groups);
  const int64_t row = place.row;
  if (row >= extent.rows) return;
  const int64_t i = int64_t{place.group} * kGroup;
  const int64_t rest = extent.width - i;
  const int64_t gate_at = 2 * row * extent.width + i;
  const int64_t up_at = gate_at + extent.width;
  float d[kGroup], gate[kGroup], up[kGroup];
  LoadGroup<aligned>(dy, row * extent.width + i, rest, d);
  LoadGroup<aligned>(gate_up, gate_at, rest, gate);
  LoadGroup<aligned>(gate_up, up_at, rest, up);
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    const float sigmoid = 1.0f / (1.0f + Exp(-gate[j]));
    const float slope = sigmoid * Fma(gate[j], 1.0f - sigmoid, 1.0f);
    const float activated = gate[j] * sigmoid;
    gate[j] = d[j] * up[j] * slope;
    up[j] = d[j] * activated;
  }
  const auto round = [](float value) { return Round<T>(value); };
  StoreGroup<aligned>(dgate_up, gate_at, rest, gate, round);
  StoreGroup<aligned>(dgate_up, up_at, rest, up, round);
}

}  // namespace

void SwiGlu(const ExecContext& ctx, ConstTensor gate_up, Tensor y) {
  const Extent extent = ExtentOf(y);
  DispatchFloat(y.dtype(), [&]<class T>() {
    DispatchOrFloat<T>(gate_up.dtype(), [&]<class X>() {
      const auto from = PointerTo<const X>(gate_up);
      const auto to = PointerTo<T>(y);
      const bool aligned = RowsAreAligned(from, extent.width) && RowsAreAligned(to, extent.width);
      Launch(ctx, FlatShape("SwiGlu", CountGroups(extent.rows, extent.groups)),
             aligned ? SwiGluGroups<true, X, T> : SwiGluGroups<false, X, T>, extent, from, to,
             SaturationCounter(ctx));
    });
  });
}

void SwiGluBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor gate_up, Tensor dgate_up) {
  const Extent extent = ExtentOf(dy);
  DispatchFloat(dy.dtype(), [&]<class T>() {
    const auto gradient = PointerTo<const T>(dy);
    const auto from = PointerTo<const T>(gate_up);
    const auto to = PointerTo<T>(dgate_up);
    const bool aligned = RowsAreAligned(gradient, extent.width) &&
                         RowsAreAligned(from, extent.width) && RowsAreAligned(to, extent.width);
    Launch(ctx, FlatShape("SwiGluBackward", CountGroups(extent.rows, extent.groups)),
           aligned ? SwiGluGroupsBackward<true, T> : SwiGluGroupsBackward<false, T>, extent,
           gradient, from, to);
  });
}

}  // namespace halfstep::cuda
