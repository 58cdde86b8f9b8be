// SPDX-License-Identifier: Apache-2.0
// dx = dy W on tensor cores.
#include "kernels/cuda/tensor_core_gemm.h"

namespace halfstep::cuda {

void BackwardInputWithTile(const ExecContext& ctx, const MatrixProduct& product, TileShape tile) {
  ProductWithTile<ProductKind::kBackwardInput, BackwardTiles>(ctx, product, tile);
}

}  // namespace halfstep::cuda
