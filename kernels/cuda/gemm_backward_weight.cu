// SPDX-License-Identifier: Apache-2.0
// dweight += dy^T x on tensor cores.
#include "kernels/cuda/tensor_core_gemm.h"

namespace halfstep::cuda {

void BackwardWeightWithTile(const ExecContext& ctx, const MatrixProduct& product, TileShape tile) {
  ProductWithTile<ProductKind::kBackwardWeight, BackwardTiles>(ctx, product, tile);
}

}  // namespace halfstep::cuda
