// SPDX-License-Identifier: Apache-2.0
// Matrix products on CUDA, behind kernels/ops/linear.h.
//
// Who computes what:
// * two 16-bit factors: TensorCoreProduct, or a library where the build has one that may
//   (gemm_provider.h);
// * FP32 among the factors: Fp32Product.
// Each element of a result is one chain over the ascending inner index, in steps of 16 with tensor
// cores and one by one in FP32, whatever the tile: no kernel here splits the inner index.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep::cuda {

// Which product of a linear layer: how its factors lie in memory and how its result is stored.
enum class ProductKind : uint8_t {
  kForward,         // y = x W^T + bias; FP16 stores saturate and are counted
  kBackwardInput,   // dx = dy W; stores may become Inf
  kBackwardWeight,  // dweight = dweight + dy^T x, FP32
};

// Whether the elements of a factor that are neighbours in memory are neighbours along the inner
// index (W in x W^T) or along the outer one (W in dy W).
constexpr bool LeftByInner(ProductKind kind) { return kind != ProductKind::kBackwardWeight; }
constexpr bool RightByInner(ProductKind kind) { return kind == ProductKind::kForward; }

// result[m, n] = sum over k of left(m, k) right(k, n). Sizes are below 2^31.
struct MatrixProduct {
  ProductKind kind;
  ConstTensor left;   // [m, k], of kBackwardWeight [k, m]
  ConstTensor right;  // [k, n], of kForward [n, k]
  ConstTensor bias;   // [n] in the dtype of `right`, or empty; kForward only
  Tensor result;      // [m, n]

  int64_t m() const { return result.dim(0); }
  int64_t n() const { return result.dim(1); }
  int64_t k() const { return left.dim(LeftByInner(kind) ? 1 : 0); }
};

// Whether all rows of `x`, a matrix, begin at a multiple of 16 bytes.
inline bool RowsAreAligned(ConstTensor x) {
  return reinterpret_cast<uintptr_t>(x.data()) % 16 == 0 &&
         x.dim(1) * static_cast<int64_t>(SizeOf(x.dtype())) % 16 == 0;
}

// The part of a result that a block computes.
struct TileShape {
  int rows;
  int columns;
  friend constexpr bool operator==(TileShape, TileShape) = default;
};

// The tiles that TensorCoreProduct has for a kind, larger ones first. The last one serves every
// shape.
std::span<const TileShape> TensorCoreTiles(ProductKind kind);
// The tile that it takes for a result of m x n.
TileShape ChooseTile(ProductKind kind, int64_t m, int64_t n);

// Factors of one 16-bit dtype; the result is of that dtype or, of kForward, FP32, and of
// kBackwardWeight FP32. Factors whose rows are not aligned take the smallest tile whatever `tile`
// says; the bits are the same.
void TensorCoreProduct(const ExecContext& ctx, const MatrixProduct& product);
void TensorCoreProductWith(const ExecContext& ctx, const MatrixProduct& product, TileShape tile);

// `left` FP32; `right` of any float dtype, converted exactly; the result FP32 or, of
// kBackwardInput, of the dtype of `right`.
void Fp32Product(const ExecContext& ctx, const MatrixProduct& product);

// Makes an FP16 result that a library stored into what a forward store leaves: Inf becomes +-65504
// and is counted, NaN stays. (Values that round to 65504 from above are not counted.) The number of
// elements is a multiple of 8.
void SaturateStored(const ExecContext& ctx, Tensor result);

}  // namespace halfstep::cuda
