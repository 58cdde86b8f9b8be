// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/linear.h"

#include "kernels/cuda/backend.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_provider.h"
#include "kernels/cuda/launch.h"
#include "kernels/dispatch_float.h"
#include "kernels/dispatch_or_float.h"

namespace halfstep::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kSlice = 128;  // rows in shared memory at a time
constexpr size_t kSliceElements = size_t{kSlice} * kWarpSize;

// A block per 32 columns: all its warps bring the next rows while the first one adds those that are
// in shared memory, each lane a column, in a chain over ascending rows that continues from what
// `sums` holds. So the chain of additions is the limit and not the latency of memory.
template <class T>
HALFSTEP_KERNEL void SumColumns(int64_t rows, int64_t columns, Pointer<const T> x,
                                Pointer<float> sums) {
  const int64_t column = int64_t{BlockX()} * kWarpSize + Lane();
  const bool inside = column < columns;
  const bool adds = Warp() == 0 && inside;
  const auto stage = [](int s) {
    return SharedMemory<float>(s * kSliceElements * sizeof(float), kSliceElements);
  };
  float values[kSlice / kWarps];
  const auto read = [&](int64_t first) {
#pragma unroll
    for (int i = 0; i < kSlice / kWarps; ++i) {
      const int64_t row = first + Warp() + i * kWarps;
      values[i] = inside && row < rows ? Widen(x[row * columns + column]) : 0.0f;
    }
  };
  float sum = adds ? sums[column] : 0.0f;
  read(0);
  for (int64_t first = 0, s = 0; first < rows; first += kSlice, s ^= 1) {
    const Pointer<float> slice = stage(static_cast<int>(s));
#pragma unroll
    for (int i = 0; i < kSlice / kWarps; ++i) {
      slice[(Warp() + i * kWarps) * kWarpSize + Lane()] = values[i];
    }
    SyncBlock();  // The other slice is read until the next one.
    if (first + kSlice < rows) read(first + kSlice);
    if (!adds) continue;
    const int count = rows - first < kSlice ? static_cast<int>(rows - first) : kSlice;
#pragma unroll 16
    for (int row = 0; row < count; ++row) sum += slice[row * kWarpSize + Lane()];
  }
  if (adds) sums[column] = sum;
}

HALFSTEP_KERNEL void SaturateElements(int64_t count, Pointer<Float16> x,
                                      Pointer<unsigned long long> saturation) {
  const int64_t first = (int64_t{BlockX()} * kThreads + ThreadIndex()) * Pack<Float16>::kCount;
  if (first >= count) return;
  Pack<Float16> pack = LoadPack(Pointer<const Float16>(x), first);
  int saturated = 0;
#pragma unroll
  for (Float16& value : pack.values) value = RoundSaturated<Float16>(Widen(value), saturated);
  if (saturated == 0) return;
  StorePack(x, first, pack);
  CountSaturated(saturation, saturated);
}

void Multiply(const ExecContext& ctx, const MatrixProduct& product) {
  if (product.result.elements() == 0) return;
  if (product.left.dtype() == DType::kFloat32) return Fp32Product(ctx, product);
  if (LibraryProduct != nullptr && LibraryProduct(ctx, product)) return;
  TensorCoreProduct(ctx, product);
}

}  // namespace

void SaturateStored(const ExecContext& ctx, Tensor result) {
  const int64_t count = result.elements();
  HALFSTEP_CHECK_EQ(count % Pack<Float16>::kCount, 0);
  const int64_t blocks = CeilDivide(count, kThreads * Pack<Float16>::kCount);
  Launch(ctx, {"saturation of Linear", blocks, 1, kThreads}, SaturateElements, count,
         PointerTo<Float16>(result), SaturationCounter(ctx));
}

void Linear(const ExecContext& ctx, ConstTensor x, const LinearWeight& weight, Tensor y) {
  Multiply(ctx, {ProductKind::kForward, x, weight.weight, weight.bias, y});
}

void LinearBackwardInput(const ExecContext& ctx, ConstTensor dy, const LinearWeight& weight,
                         Tensor dx) {
  Multiply(ctx, {ProductKind::kBackwardInput, dy, weight.weight, {}, dx});
}

void LinearBackwardWeight(const ExecContext& ctx, ConstTensor dy, ConstTensor x, Tensor dweight,
                          Tensor dbias) {
  if (dy.dim(0) == 0) return;
  Multiply(ctx, {ProductKind::kBackwardWeight, dy, x, {}, dweight});
  if (dbias.empty()) return;
  DispatchFloat(dy.dtype(), [&]<class T>() {
    const int64_t columns = dy.dim(1);
    const LaunchShape shape{"LinearBackwardWeight bias", CeilDivide(columns, kWarpSize), 1,
                            kThreads, 2 * kSliceElements * sizeof(float)};
    Launch(ctx, shape, SumColumns<T>, dy.dim(0), columns, PointerTo<const T>(dy),
           PointerTo<float>(dbias));
  });
}

}  // namespace halfstep::cuda
