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

constexpr int kThreads = 64;

// A thread per column: its chain over ascending rows continues from what `sums` holds.
template <class T>
HALFSTEP_KERNEL void SumColumns(int64_t rows, int64_t columns, Pointer<const T> x,
                                Pointer<float> sums) {
  const int64_t column = int64_t{BlockX()} * kThreads + ThreadIndex();
  if (column >= columns) return;
  float sum = sums[column];
#pragma unroll 8
  for (int64_t row = 0; row < rows; ++row) sum += Widen(x[row * columns + column]);
  sums[column] = sum;
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
    Launch(ctx, {"LinearBackwardWeight bias", CeilDivide(columns, kThreads), 1, kThreads},
           SumColumns<T>, dy.dim(0), columns, PointerTo<const T>(dy), PointerTo<float>(dbias));
  });
}

}  // namespace halfstep::cuda
