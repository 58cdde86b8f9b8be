// SPDX-License-Identifier: Apache-2.0
// Gradient statistics in two stages, and AdamW, four parameters a thread: 16 bytes of each FP32
// arena, and whole lines for a warp.
#include "kernels/ops/optimizer.h"

#include <algorithm>
#include <type_traits>

#include "kernels/adamw_coefficients.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/flat_access.h"
#include "kernels/cuda/launch.h"
#include "kernels/dispatch_float.h"
#include "kernels/workspace.h"

namespace halfstep::cuda {
namespace {

constexpr int kQuad = Pack<float>::kCount;
constexpr int kWarps = kFlatThreads / kWarpSize;

// Blocks of the first stage at most: four for each of 132 multiprocessors, with four loads of a
// thread under way. Not what the device has, because it is part of the order of the sum.
constexpr int64_t kMostBlocks = 528;

struct FlatExtent {
  int64_t count;
  bool aligned;
};

// v = p[i .. i + 4), zeros beyond the end.
HALFSTEP_DEVICE void LoadQuad(const FlatExtent& extent, Pointer<const float> p, int64_t i,
                              float (&v)[kQuad]) {
  if (extent.aligned && i + kQuad <= extent.count) {
    const Pack<float> pack = LoadPack(p, i);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) v[j] = pack.values[j];
  } else {
#pragma unroll
    for (int j = 0; j < kQuad; ++j) v[j] = i + j < extent.count ? p[i + j] : 0.0f;
  }
}

// ---- statistics

// Puts those of all threads of a block together; thread 0 gets the result. Shared memory of kWarps
// GradientStatistics.
HALFSTEP_DEVICE GradientStatistics TogetherInBlock(GradientStatistics own) {
  const Pointer<GradientStatistics> warps = SharedMemory<GradientStatistics>(0, kWarps);
  own.squared_norm = WarpSum(own.squared_norm);
  own.non_finite = WarpSum(static_cast<long long>(own.non_finite));
  own.largest = WarpMax(own.largest);
  if (Lane() == 0) warps[Warp()] = own;
  SyncBlock();
  GradientStatistics total;
  if (ThreadIndex() == 0) {
    for (int warp = 0; warp < kWarps; ++warp) total = Together(total, warps[warp]);
  }
  return total;
}

// parts[b] is of the quads that block b takes, one of every GridX() * kFlatThreads a thread.
HALFSTEP_KERNEL void MeasureParts(FlatExtent extent, Pointer<const float> gradient,
                                  Pointer<GradientStatistics> parts) {
  double squares[kQuad] = {};
  int non_finite = 0;
  float largest = 0;
  const int64_t step = int64_t{GridX()} * kFlatThreads * kQuad;
#pragma unroll 4
  for (int64_t i = GridThread() * kQuad; i < extent.count; i += step) {
    float v[kQuad];
    LoadQuad(extent, gradient, i, v);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      const float magnitude = BitsToFloat(FloatToBits(v[j]) & 0x7fffffff);
      const bool finite = magnitude < BitsToFloat(0x7f800000);
      squares[j] = Fma(double{v[j]}, double{v[j]}, squares[j]);
      non_finite += finite ? 0 : 1;
      largest = finite && magnitude > largest ? magnitude : largest;
    }
  }
  const GradientStatistics total =
      TogetherInBlock({(squares[0] + squares[1]) + (squares[2] + squares[3]), non_finite, largest});
  if (ThreadIndex() == 0) parts[BlockX()] = total;
}

// One block.
HALFSTEP_KERNEL void JoinParts(int64_t count, Pointer<const GradientStatistics> parts,
                               Pointer<GradientStatistics> statistics) {
  GradientStatistics own;
  for (int64_t i = ThreadIndex(); i < count; i += kFlatThreads) own = Together(own, parts[i]);
  const GradientStatistics total = TogetherInBlock(own);
  if (ThreadIndex() == 0) statistics[0] = total;
}

// One thread; the other lanes of its warp have nothing to do.
HALFSTEP_KERNEL void Decide(int64_t count, Pointer<const GradientStatistics> parts,
                            GradientLimits limits, Pointer<GradientDecision> decision) {
  if (ThreadIndex() != 0) return;
  GradientStatistics total;
  for (int64_t i = 0; i < count; ++i) total = Together(total, parts[i]);
  decision[0] = MakeGradientDecision(total, SquareRoot(total.squared_norm), limits);
}

// Records in the memory of a uint8 tensor.
template <class Record, class Byte>
auto RecordsOf(BasicTensor<Byte> x) {
  using Element = std::conditional_t<std::is_const_v<Byte>, const Record, Record>;
  HALFSTEP_CHECK(x.device().type == DeviceType::kCuda);
  return Pointer<Element>(static_cast<Element*>(x.data()),
                          static_cast<int64_t>(x.bytes() / sizeof(Record)));
}

// ---- AdamW

template <class T>
struct Parameters {
  Pointer<const float> gradient;
  Pointer<float> master;
  Pointer<float> first;
  Pointer<float> second;
  Pointer<T> weights;
  Pointer<const GradientDecision> decision;  // may be empty
};

// p[i .. i + 4) = v as far as the end, rounded to nearest even.
template <class T>
HALFSTEP_DEVICE void StoreQuad(const FlatExtent& extent, Pointer<T> p, int64_t i,
                               const float (&v)[kQuad]) {
  if (extent.aligned && i + kQuad <= extent.count) {
    Pack<T, kQuad> pack;
#pragma unroll
    for (int j = 0; j < kQuad; ++j) pack.values[j] = Round<T>(v[j]);
    StorePack(p, i, pack);
  } else {
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      if (i + j < extent.count) p[i + j] = Round<T>(v[j]);
    }
  }
}

template <class T>
HALFSTEP_KERNEL void AdamWQuads(FlatExtent extent, AdamWCoefficients c, Parameters<T> p) {
  const int64_t i = GridThread() * kQuad;
  if (i >= extent.count) return;
  if (!p.decision.empty()) {
    const GradientDecision& decision = p.decision[0];
    if (decision.skip != 0) return;
    c.inverse_scale = decision.inverse_scale;
    c.clip_factor = decision.clip_factor;
  }
  float g[kQuad], m[kQuad], v[kQuad], w[kQuad];
  LoadQuad(extent, p.gradient, i, g);
  LoadQuad(extent, p.first, i, m);
  LoadQuad(extent, p.second, i, v);
  LoadQuad(extent, p.master, i, w);
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    g[j] = g[j] * c.inverse_scale * c.clip_factor;
    m[j] = Fma(c.beta1, m[j], c.one_minus_beta1 * g[j]);
    v[j] = Fma(c.beta2, v[j], c.one_minus_beta2 * g[j] * g[j]);
    w[j] = Fma(-c.decay, w[j], w[j]);
    const float denominator = Fma(SquareRoot(v[j]), c.inverse_correction2, c.epsilon);
    w[j] = Fma(-c.step_size, m[j] / denominator, w[j]);
  }
  StoreQuad(extent, p.first, i, m);
  StoreQuad(extent, p.second, i, v);
  StoreQuad(extent, p.master, i, w);
  StoreQuad(extent, p.weights, i, w);
}

}  // namespace

void MeasureGradient(const ExecContext& ctx, ConstTensor gradient, Tensor statistics) {
  const auto values = PointerTo<const float>(gradient);
  const FlatExtent extent{gradient.elements(), IsAligned(values)};
  const int64_t blocks =
      std::min(CeilDivide(extent.count, int64_t{kFlatThreads} * kQuad), kMostBlocks);
  Workspace::Scope scratch(ctx.workspace);
  const Pointer<GradientStatistics> parts(
      scratch.Array<GradientStatistics>(static_cast<size_t>(blocks)), blocks);
  constexpr size_t kShared = kWarps * sizeof(GradientStatistics);
  Launch(ctx, {"MeasureGradient", blocks, 1, kFlatThreads, kShared}, MeasureParts, extent, values,
         parts);
  Launch(ctx, {"MeasureGradient join", 1, 1, kFlatThreads, kShared}, JoinParts, blocks, parts,
         RecordsOf<GradientStatistics>(statistics));
}

GradientStatistics ComputeGradientStatistics(const ExecContext& ctx, ConstTensor gradient) {
  constexpr size_t kBytes = sizeof(GradientStatistics);
  Workspace::Scope scratch(ctx.workspace);
  const Tensor on_device = scratch.Take(DType::kUInt8, {kBytes});
  cuda::MeasureGradient(ctx, gradient, on_device);
  GradientStatistics statistics;
  CopyBytes(ctx.stream->native(), &statistics, on_device.data(), kBytes);
  ctx.stream->Synchronize();
  return statistics;
}

void DecideGradient(const ExecContext& ctx, ConstTensor statistics, const GradientLimits& limits,
                    Tensor decision) {
  Launch(ctx, {"DecideGradient", 1, 1, kWarpSize}, Decide, statistics.dim(0),
         RecordsOf<GradientStatistics>(statistics), limits, RecordsOf<GradientDecision>(decision));
}

void AdamW(const ExecContext& ctx, const AdamWTensors& tensors, const AdamWOptions& options) {
  DispatchFloat(tensors.weights.dtype(), [&]<class T>() {
    Parameters<T> p{PointerTo<const float>(tensors.gradient),
                    PointerTo<float>(tensors.master),
                    PointerTo<float>(tensors.first_moment),
                    PointerTo<float>(tensors.second_moment),
                    PointerTo<T>(tensors.weights),
                    {}};
    if (!tensors.decision.empty()) p.decision = RecordsOf<GradientDecision>(tensors.decision);
    const FlatExtent extent{tensors.master.elements(),
                            IsAligned(p.gradient) && IsAligned(p.master) && IsAligned(p.first) &&
                                IsAligned(p.second) && IsAligned(p.weights)};
    Launch(ctx, FlatShape("AdamW", CeilDivide(extent.count, kQuad)), AdamWQuads<T>, extent,
           MakeAdamWCoefficients(options), p);
  });
}

}  // namespace halfstep::cuda
