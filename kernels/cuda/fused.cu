// SPDX-License-Identifier: Apache-2.0
// The fused operations of the fast profile. They run for the few rows of a decoding step, so a row
// is spread over a block and a head over a warp: what counts is the time of one row.
#include "kernels/ops/fused.h"

#include "kernels/cuda/backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.h"
#include "kernels/cuda/row_access.h"
#include "kernels/dispatch_float.h"
#include "kernels/dispatch_or_float.h"

namespace halfstep::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;

HALFSTEP_DEVICE float ReciprocalRoot(float squares, int64_t width, float epsilon) {
  return 1.0f / SquareRoot(squares / static_cast<float>(width) + epsilon);
}

struct NormExtent {
  int64_t width;
  float epsilon;
};

// A block per row. The sum is made a second time rather than kept: it comes from the nearest cache,
// and the residual, whose place it may take, is still there.
template <bool aligned, class R, class W, class Y>
HALFSTEP_KERNEL void AddRmsNormRow(NormExtent extent, Pointer<const R> residual,
                                   Pointer<const float> delta, Pointer<const W> weight,
                                   Pointer<R> sum, Pointer<Y> y,
                                   Pointer<unsigned long long> saturation) {
  constexpr int64_t kStep = kThreads * kGroup;
  const int64_t width = extent.width;
  const int64_t row = int64_t{BlockX()} * width;
  float squares = 0;
  for (int64_t i = ThreadIndex() * kGroup; i < width; i += kStep) {
    float v[kGroup], d[kGroup];
    LoadGroup<aligned>(residual, row + i, width - i, v);
    LoadGroup<aligned>(delta, row + i, width - i, d);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const float exact = v[j] + d[j];
      squares = Fma(exact, exact, squares);
    }
  }
  const Pointer<float> parts = SharedMemory<float>(0, kWarps);
  squares = WarpSum(squares);
  if (Lane() == 0) parts[Warp()] = squares;
  SyncBlock();
  float total = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total += parts[warp];
  const float scale = ReciprocalRoot(total, width, extent.epsilon);
  int saturated = 0;
  for (int64_t i = ThreadIndex() * kGroup; i < width; i += kStep) {
    float v[kGroup], d[kGroup], w[kGroup];
    LoadGroup<aligned>(residual, row + i, width - i, v);
    LoadGroup<aligned>(delta, row + i, width - i, d);
    LoadGroup<aligned>(weight, i, width - i, w);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) v[j] += d[j];
    StoreGroup<aligned>(sum, row + i, width - i, v,
                        [&](float value) { return RoundSaturated<R>(value, saturated); });
#pragma unroll
    for (int j = 0; j < kGroup; ++j) v[j] = v[j] * scale * w[j];
    StoreGroup<aligned>(y, row + i, width - i, v,
                        [&](float value) { return RoundSaturated<Y>(value, saturated); });
  }
  CountSaturated(saturation, saturated);
}

template <class R, class W, class Y>
void AddRmsNormOf(const ExecContext& ctx, ConstTensor residual, ConstTensor delta,
                  ConstTensor weight, float epsilon, Tensor sum, Tensor y) {
  const NormExtent extent{residual.dim(1), epsilon};
  const auto from = PointerTo<const R>(residual);
  const auto addend = PointerTo<const float>(delta);
  const auto scales = PointerTo<const W>(weight);
  const auto to_sum = PointerTo<R>(sum);
  const auto to = PointerTo<Y>(y);
  const bool aligned = RowsAreAligned(from, extent.width) && RowsAreAligned(addend, extent.width) &&
                       RowsAreAligned(scales, extent.width) &&
                       RowsAreAligned(to_sum, extent.width) && RowsAreAligned(to, extent.width);
  Launch(ctx, {"AddRmsNorm", residual.dim(0), 1, kThreads, kWarps * sizeof(float)},
         aligned ? AddRmsNormRow<true, R, W, Y> : AddRmsNormRow<false, R, W, Y>, extent, from,
         addend, scales, to_sum, to, SaturationCounter(ctx));
}

template <class T>
struct HeadTensors {
  Pointer<const float> qkv;
  Pointer<const T> q_norm;  // may be empty
  Pointer<const T> k_norm;
  Pointer<const int32_t> positions;
  Pointer<const float> table;
  Pointer<T> q;
  Pointer<T> k;
  Pointer<T> v;
};

struct HeadExtent {
  int64_t rows;  // tokens * heads of qkv
  uint32_t heads;
  uint32_t kv_heads;
  int64_t half;
  int64_t positions;
  float epsilon;
};

// Lane l takes the pairs l, l + 32, ...: 128 bytes of a warp at a time for every size of head.
template <class T>
HALFSTEP_DEVICE int FinishHead(const HeadExtent& extent, Pointer<const float> x,
                               Pointer<const T> weight, Pointer<const float> angles, Pointer<T> y) {
  const int64_t half = extent.half;
  float scale = 1;
  if (!weight.empty()) {
    float squares = 0;
    for (int64_t i = Lane(); i < half; i += kWarpSize) {
      squares = Fma(x[i], x[i], squares);
      squares = Fma(x[half + i], x[half + i], squares);
    }
    scale = ReciprocalRoot(WarpSum(squares), 2 * half, extent.epsilon);
  }
  int saturated = 0;
  for (int64_t i = Lane(); i < half; i += kWarpSize) {
    float a = x[i], b = x[half + i];
    if (!weight.empty()) {
      a = a * scale * Widen(weight[i]);
      b = b * scale * Widen(weight[half + i]);
    }
    const float cosine = angles.empty() ? QuietNaN() : angles[i];
    const float sine = angles.empty() ? QuietNaN() : angles[half + i];
    y[i] = RoundSaturated<T>(Fma(-b, sine, a * cosine), saturated);
    y[half + i] = RoundSaturated<T>(Fma(a, sine, b * cosine), saturated);
  }
  return saturated;
}

// A warp per head of queries, keys or values.
template <class T>
HALFSTEP_KERNEL void FinishHeadRows(HeadExtent extent, HeadTensors<T> in,
                                    Pointer<unsigned long long> saturation) {
  const int64_t row = int64_t{BlockX()} * kWarps + Warp();
  if (row >= extent.rows) return;
  const uint32_t all_heads = extent.heads + 2 * extent.kv_heads;
  const uint32_t token = static_cast<uint32_t>(row) / all_heads;
  const uint32_t head = static_cast<uint32_t>(row) - token * all_heads;
  const int64_t width = 2 * extent.half;
  const Pointer<const float> x = in.qkv + row * width;
  const int64_t position = in.positions[token];
  const bool valid = position >= 0 && position < extent.positions;
  const Pointer<const float> angles = valid ? in.table + position * width : Pointer<const float>();
  int saturated = 0;
  if (head < extent.heads) {
    const Pointer<T> q = in.q + (int64_t{token} * extent.heads + head) * width;
    saturated = FinishHead(extent, x, in.q_norm, angles, q);
  } else if (head < extent.heads + extent.kv_heads) {
    const int64_t kv_head = head - extent.heads;
    const Pointer<T> k = in.k + (int64_t{token} * extent.kv_heads + kv_head) * width;
    saturated = FinishHead(extent, x, in.k_norm, angles, k);
  } else {
    const int64_t kv_head = head - extent.heads - extent.kv_heads;
    const Pointer<T> v = in.v + (int64_t{token} * extent.kv_heads + kv_head) * width;
    for (int64_t i = Lane(); i < width; i += kWarpSize) {
      v[i] = RoundSaturated<T>(x[i], saturated);
    }
  }
  CountSaturated(saturation, saturated);
}

}  // namespace

void AddRmsNorm(const ExecContext& ctx, ConstTensor residual, ConstTensor delta, ConstTensor weight,
                float epsilon, Tensor sum, Tensor y) {
  DispatchFloat(weight.dtype(), [&]<class W>() {
    DispatchOrFloat<W>(residual.dtype(), [&]<class R>() {
      DispatchOrFloat<W>(y.dtype(), [&]<class Y>() {
        AddRmsNormOf<R, W, Y>(ctx, residual, delta, weight, epsilon, sum, y);
      });
    });
  });
}

void FinishHeads(const ExecContext& ctx, const ProjectedHeads& in, Tensor q, Tensor k, Tensor v) {
  const int64_t heads = q.dim(1) + 2 * k.dim(1);
  const HeadExtent extent{q.dim(0) * heads,
                          static_cast<uint32_t>(q.dim(1)),
                          static_cast<uint32_t>(k.dim(1)),
                          q.dim(2) / 2,
                          in.rope_table.dim(0),
                          in.epsilon};
  HALFSTEP_CHECK_LT(extent.rows, int64_t{1} << 31);
  DispatchFloat(q.dtype(), [&]<class T>() {
    const HeadTensors<T> tensors{PointerTo<const float>(in.qkv),
                                 PointerTo<const T>(in.q_norm),
                                 PointerTo<const T>(in.k_norm),
                                 PointerTo<const int32_t>(in.positions),
                                 PointerTo<const float>(in.rope_table),
                                 PointerTo<T>(q),
                                 PointerTo<T>(k),
                                 PointerTo<T>(v)};
    Launch(ctx, {"FinishHeads", CeilDivide(extent.rows, kWarps), 1, kThreads}, FinishHeadRows<T>,
           extent, tensors, SaturationCounter(ctx));
  });
}

}  // namespace halfstep::cuda
