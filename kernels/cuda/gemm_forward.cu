// SPDX-License-Identifier: Apache-2.0
// y = x W^T + bias on tensor cores, and which tile a product takes.
#include <algorithm>

#include "kernels/cuda/tensor_core_gemm.h"

namespace halfstep::cuda {
namespace {

// A tile serves results of at least `least_rows`, of which it would else compute too little, when
// they have at least `least_tiles` of it, which keep the 132 multiprocessors of an H100 (108 of an
// A100) busy: large tiles read less, small ones find more blocks. The first that fits is taken.
struct TileRule {
  TileShape tile;
  int64_t least_rows;
  int64_t least_tiles;
};
constexpr TileRule kRules[] = {
    {{128, 128}, 65, 128}, {{128, 64}, 65, 128}, {{64, 128}, 17, 64}, {{64, 64}, 17, 128},
    {{64, 32}, 17, 64},    {{16, 128}, 0, 64},   {{16, 32}, 0, 0},
};

}  // namespace

std::span<const TileShape> TensorCoreTiles(ProductKind kind) {
  if (kind == ProductKind::kForward) return ForwardTiles::kShapes;
  return BackwardTiles::kShapes;
}

TileShape ChooseTile(ProductKind kind, int64_t m, int64_t n) {
  const std::span<const TileShape> tiles = TensorCoreTiles(kind);
  for (const TileRule& rule : kRules) {
    if (m < rule.least_rows || std::find(tiles.begin(), tiles.end(), rule.tile) == tiles.end()) {
      continue;
    }
    if (CeilDivide(m, rule.tile.rows) * CeilDivide(n, rule.tile.columns) >= rule.least_tiles) {
      return rule.tile;
    }
  }
  return tiles.back();
}

void TensorCoreProduct(const ExecContext& ctx, const MatrixProduct& product) {
  TensorCoreProductWith(ctx, product, ChooseTile(product.kind, product.m(), product.n()));
}

void TensorCoreProductWith(const ExecContext& ctx, const MatrixProduct& product, TileShape tile) {
  switch (product.kind) {
    case ProductKind::kForward:
      return ForwardWithTile(ctx, product, tile);
    case ProductKind::kBackwardInput:
      return BackwardInputWithTile(ctx, product, tile);
    case ProductKind::kBackwardWeight:
      return BackwardWeightWithTile(ctx, product, tile);
  }
}

void ForwardWithTile(const ExecContext& ctx, const MatrixProduct& product, TileShape tile) {
  ProductWithTile<ProductKind::kForward, ForwardTiles>(ctx, product, tile);
}

}  // namespace halfstep::cuda
