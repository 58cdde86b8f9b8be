// SPDX-License-Identifier: Apache-2.0
// The matrix product on tensor cores: a block computes a tile of the result, and its warps a part
// of the tile each. Slices of kDepth of the inner index travel through a ring of stages in shared
// memory by asynchronous copies, from there to registers by ldmatrix, transposed where the factor
// lies the other way round.
//
// The sum of an element goes through one accumulator, ceil(k / 16) matrix instructions in ascending
// order, whatever the tile: no tile, and no other row, changes its bits.
//
// mma.sync reaches about 60 % of what wgmma can do on Hopper; the tiles of 16 rows are bound by
// reading the weight instead, and keep 30 to 50 KiB a block on the way to hide the memory's
// latency.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/cuda/device_code.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.h"

namespace halfstep::cuda {

inline constexpr int kStep = 16;   // inner extent of a matrix instruction
inline constexpr int kDepth = 64;  // of a stage
inline constexpr int kSteps = kDepth / kStep;

// A tile, how many warps share it and along which sides, the stages of its ring and how many blocks
// shall fit a multiprocessor.
template <int rows, int columns, int warps_down, int warps_across, int stages, int blocks>
struct TensorCoreTile {
  static constexpr TileShape kShape{rows, columns};
  static constexpr int kWarpsAcross = warps_across;
  static constexpr int kThreads = warps_down * warps_across * kWarpSize;
  static constexpr int kStages = stages;
  static constexpr int kBlocks = blocks;
  // Of a warp, in matrix instructions of 16 x 8.
  static constexpr int kDown = rows / warps_down / 16;
  static constexpr int kAcross = columns / warps_across / 8;
  static_assert(kDown * warps_down * 16 == rows && kAcross * warps_across * 8 == columns);
  static_assert(kAcross % 2 == 0, "ldmatrix brings two at a time");
  static constexpr size_t kSharedBytes = size_t{stages} * (rows + columns) * kDepth * 2;
};

template <class T>
struct GemmArguments {
  int m, n, k;
  Pointer<const T> left, right, bias;
  // The result in T or in FP32; the other one is empty.
  Pointer<T> narrow;
  Pointer<float> wide;
  bool pairs;  // whether two neighbours can be accessed at once
  Pointer<unsigned long long> saturation;
};

// One factor: kOuter rows of m (or columns of n) by kDepth of the inner index in shared memory, as
// rows of 16-byte chunks in the order of global memory. Chunk c of row r lies where the xor of
// Place says, so that neither the copies nor the eight rows of a matrix of ldmatrix share a bank.
template <class T, int kOuter, bool kByInner, int kThreads, bool kAligned>
class Factor {
 public:
  static constexpr int kElements = kOuter * kDepth;

  HALFSTEP_DEVICE Factor(Pointer<const T> matrix, int outer, int inner, int first_outer)
      : rows_(kByInner ? outer : inner),
        width_(kByInner ? inner : outer),
        row_((kByInner ? first_outer : 0) + ThreadIndex() / kChunks),
        column_((kByInner ? 0 : first_outer) + ThreadIndex() % kChunks * kChunk),
        matrix_(matrix + (int64_t{row_} * width_ + column_)) {}

  // Brings inner indices [at, at + kDepth) into `to`, zeros where the matrix has ended.
  HALFSTEP_DEVICE void Copy(Pointer<T> to, int at) const {
    const int row = kByInner ? row_ : row_ + at;
    const int column = kByInner ? column_ + at : column_;
    const Pointer<const T> from = matrix_ + (kByInner ? int64_t{at} : int64_t{at} * width_);
    const int64_t stride = int64_t{kRowsAtOnce} * width_;
#pragma unroll
    for (int i = 0; i < kRows / kRowsAtOnce; ++i) {
      const int r = ThreadIndex() / kChunks + i * kRowsAtOnce;
      const Pointer<T> chunk = to + Place(r, ThreadIndex() % kChunks);
      const bool in_rows = row + i * kRowsAtOnce < rows_;
      if constexpr (kAligned) {
        CopyAsync16(chunk, from + i * stride, in_rows && column < width_);
      } else {
#pragma unroll
        for (int j = 0; j < kChunk; ++j) {
          chunk[j] = in_rows && column + j < width_ ? from[i * stride + j] : T{};
        }
      }
    }
  }

  // The four 8 x 8 matrices of outer indices [outer, outer + 16) and inner indices [16 step,
  // 16 step + 16): of the lower and the upper half of the outer ones, then the same for the upper
  // half of the inner ones. That is a left factor as an instruction wants it; of a right factor
  // matrices 0 and 2 are the lower eight columns, 1 and 3 the upper ones.
  HALFSTEP_DEVICE static void Load(uint32_t (&r)[4], Pointer<const T> from, int outer, int step) {
    const int lane = Lane();
    if constexpr (kByInner) {
      LoadMatrix4(r, from + Place(outer + lane % 16, step * 2 + lane / 16));
    } else {
      LoadMatrix4Transposed(
          r, from + Place(step * kStep + lane / 16 * 8 + lane % 8, outer / kChunk + lane / 8 % 2));
    }
  }

 private:
  static constexpr int kChunk = 8;  // elements
  static constexpr int kRows = kByInner ? kOuter : kDepth;
  static constexpr int kChunks = (kByInner ? kDepth : kOuter) / kChunk;  // of a row
  static constexpr int kRowsAtOnce = kThreads / kChunks;
  static constexpr int kBankRow = kChunks < 8 ? kChunks : 8;  // chunks of a row on separate banks
  static_assert(kThreads % kChunks == 0 && kRows % kRowsAtOnce == 0);

  HALFSTEP_DEVICE static int Place(int row, int chunk) {
    return (row * kChunks + (chunk ^ (row / (8 / kBankRow) % kBankRow))) * kChunk;
  }

  int rows_, width_;  // of the matrix
  int row_, column_;  // of this thread's first chunk
  Pointer<const T> matrix_;
};

// Calls f(row, column, i, j, e) for the first of each pair of neighbours in a row that this lane
// holds: elements e and e + 1 of instruction (i, j) of its warp.
template <class Tile, class F>
HALFSTEP_DEVICE void ForEachPair(F&& f) {
  const int warp = Recomputed(Warp());
  const int row0 = BlockX() * Tile::kShape.rows + warp / Tile::kWarpsAcross * Tile::kDown * 16;
  const int column0 =
      BlockY() * Tile::kShape.columns + warp % Tile::kWarpsAcross * Tile::kAcross * 8;
#pragma unroll
  for (int i = 0; i < Tile::kDown; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kAcross; ++j) {
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        f(row0 + i * 16 + Lane() / 4 + e / 2 * 8, column0 + j * 8 + Lane() % 4 * 2, i, j, e);
      }
    }
  }
}

// Stores (low, high) at elements i and, where `both`, i + 1.
template <class T>
HALFSTEP_DEVICE void StoreUpTo(Pointer<T> to, int64_t i, Pair<T> pair, bool at_once, bool both) {
  if (at_once) {
    StorePair(to, i, pair);
  } else {
    to[i] = pair.low;
    if (both) to[i + 1] = pair.high;
  }
}

template <class T, class Tile, ProductKind kKind, bool kAligned>
HALFSTEP_KERNEL void HALFSTEP_LAUNCH_BOUNDS(Tile::kThreads, Tile::kBlocks)
    TensorCoreGemm(GemmArguments<T> arg) {
  using Left = Factor<T, Tile::kShape.rows, LeftByInner(kKind), Tile::kThreads, kAligned>;
  using Right = Factor<T, Tile::kShape.columns, RightByInner(kKind), Tile::kThreads, kAligned>;
  constexpr int kStageElements = Left::kElements + Right::kElements;
  const Left left(arg.left, arg.m, arg.k, BlockX() * Tile::kShape.rows);
  const Right right(arg.right, arg.n, arg.k, BlockY() * Tile::kShape.columns);
  const auto stage = [](int s) {
    return SharedMemory<T>(static_cast<size_t>(s) * kStageElements * sizeof(T), kStageElements);
  };
  const int slices = (arg.k + kDepth - 1) / kDepth;
  const auto copy = [&](int slice, int to) {
    if (slice < slices) {
      left.Copy(stage(to), slice * kDepth);
      right.Copy(stage(to) + Left::kElements, slice * kDepth);
    }
    CommitCopies();
  };
  for (int s = 0; s < Tile::kStages - 1; ++s) copy(s, s);

  float sum[Tile::kDown][Tile::kAcross][4] = {};
  if constexpr (kKind == ProductKind::kBackwardWeight) {
    ForEachPair<Tile>([&](int row, int column, int i, int j, int e) {
      if (row >= arg.m || column >= arg.n) return;
      const Pointer<const float> from = arg.wide + (int64_t{row} * arg.n + column);
      if (arg.pairs) {
        const Pair<float> pair = LoadPair(from, 0);
        sum[i][j][e] = pair.low;
        sum[i][j][e + 1] = pair.high;
      } else {
        sum[i][j][e] = from[0];
        if (column + 1 < arg.n) sum[i][j][e + 1] = from[1];
      }
    });
  }

  const auto multiply = [&](Pointer<const T> from, int step) {
    const int outer_left = Warp() / Tile::kWarpsAcross * Tile::kDown * 16;
    const int outer_right = Warp() % Tile::kWarpsAcross * Tile::kAcross * 8;
    uint32_t a[Tile::kDown][4], b[Tile::kAcross][2];
#pragma unroll
    for (int i = 0; i < Tile::kDown; ++i) Left::Load(a[i], from, outer_left + i * 16, step);
#pragma unroll
    for (int j = 0; j < Tile::kAcross; j += 2) {
      uint32_t r[4];
      Right::Load(r, from + Left::kElements, outer_right + j * 8, step);
      b[j][0] = r[0];
      b[j][1] = r[2];
      b[j + 1][0] = r[1];
      b[j + 1][1] = r[3];
    }
#pragma unroll
    for (int i = 0; i < Tile::kDown; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kAcross; ++j) MatrixMultiplyAdd<T>(sum[i][j], a[i], b[j]);
    }
  };
  int current = 0;
  for (int slice = 0; slice < slices; ++slice) {
    WaitCopies<Tile::kStages - 2>();
    SyncBlock();  // The slice is there, and nobody reads the stage that is overwritten now.
    copy(slice + Tile::kStages - 1, current == 0 ? Tile::kStages - 1 : current - 1);
    const Pointer<const T> from = stage(current);
    const int steps = (arg.k - slice * kDepth + kStep - 1) / kStep;
    if (steps >= kSteps) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) multiply(from, step);
    } else {
#pragma unroll 1
      for (int step = 0; step < steps; ++step) multiply(from, step);
    }
    current = current + 1 == Tile::kStages ? 0 : current + 1;
  }

  // Four lanes write 16 or 32 neighbouring bytes at a time, which the L2 cache joins to sectors.
  int saturated = 0;
  ForEachPair<Tile>([&](int row, int column, int i, int j, int e) {
    if (row >= arg.m || column >= arg.n) return;
    const bool both = column + 1 < arg.n;
    const int64_t at = int64_t{row} * arg.n + column;
    float low = sum[i][j][e], high = sum[i][j][e + 1];
    if constexpr (kKind == ProductKind::kForward) {
      if (!arg.bias.empty()) {
        low += Widen(arg.bias[column]);
        if (both) high += Widen(arg.bias[column + 1]);
      }
      if (arg.wide.empty()) {
        const Pair<T> pair{RoundSaturated<T>(low, saturated), RoundSaturated<T>(high, saturated)};
        return StoreUpTo(arg.narrow, at, pair, arg.pairs, both);
      }
    }
    if constexpr (kKind == ProductKind::kBackwardInput) {
      StoreUpTo(arg.narrow, at, Pair<T>{Round<T>(low), Round<T>(high)}, arg.pairs, both);
    } else {
      StoreUpTo(arg.wide, at, Pair<float>{low, high}, arg.pairs, both);
    }
  });
  if constexpr (kKind == ProductKind::kForward) CountSaturated(arg.saturation, saturated);
}

template <class T>
GemmArguments<T> ArgumentsOf(const ExecContext& ctx, const MatrixProduct& product) {
  const DType narrow = DTypeOf<T>::value;
  const size_t pair_bytes = 2 * SizeOf(product.result.dtype());
  GemmArguments<T> arg;
  arg.m = static_cast<int>(product.m());
  arg.n = static_cast<int>(product.n());
  arg.k = static_cast<int>(product.k());
  arg.left = PointerTo<const T>(product.left);
  arg.right = PointerTo<const T>(product.right);
  arg.bias = PointerTo<const T>(product.bias);
  if (product.result.dtype() == narrow) {
    arg.narrow = PointerTo<T>(product.result);
  } else {
    arg.wide = PointerTo<float>(product.result);
  }
  arg.pairs =
      product.n() % 2 == 0 && reinterpret_cast<uintptr_t>(product.result.data()) % pair_bytes == 0;
  arg.saturation = SaturationCounter(ctx);
  return arg;
}

template <class T, class Tile, ProductKind kKind, bool kAligned>
void LaunchTensorCore(const ExecContext& ctx, const MatrixProduct& product) {
  static constexpr const char* kNames[] = {"Linear", "LinearBackwardInput", "LinearBackwardWeight"};
  const LaunchShape shape{
      kNames[static_cast<int>(kKind)], CeilDivide(product.m(), Tile::kShape.rows),
      CeilDivide(product.n(), Tile::kShape.columns), Tile::kThreads, Tile::kSharedBytes};
  Launch(ctx, shape, TensorCoreGemm<T, Tile, kKind, kAligned>, ArgumentsOf<T>(ctx, product));
}

// The tiles of one kind of product.
template <class... Tiles>
struct TileSet {
  static constexpr std::array kShapes = {Tiles::kShape...};
};
using SmallestTile = TensorCoreTile<16, 32, 1, 2, 8, 4>;
using ForwardTiles =
    TileSet<TensorCoreTile<128, 128, 2, 4, 3, 2>, TensorCoreTile<64, 128, 2, 2, 4, 2>,
            TensorCoreTile<64, 32, 4, 1, 4, 4>, TensorCoreTile<16, 128, 1, 4, 4, 3>, SmallestTile>;
// A factor that is transposed on its way, and a sum that is continued, take registers that a tile
// of 128 x 128 does not leave.
using BackwardTiles =
    TileSet<TensorCoreTile<128, 64, 2, 2, 3, 3>, TensorCoreTile<64, 64, 2, 2, 4, 3>, SmallestTile>;

// Starts the kernel of the tile of this shape; false when the set has none.
template <class T, ProductKind kKind, class... Tiles>
bool LaunchTile(const ExecContext& ctx, const MatrixProduct& product, TileShape tile,
                TileSet<Tiles...>) {
  return (
      (Tiles::kShape == tile && (LaunchTensorCore<T, Tiles, kKind, true>(ctx, product), true)) ||
      ...);
}

// TensorCoreProductWith for one kind.
template <ProductKind kKind, class Set>
void ProductWithTile(const ExecContext& ctx, const MatrixProduct& product, TileShape tile) {
  const auto run = [&]<class T>() {
    if (RowsAreAligned(product.left) && RowsAreAligned(product.right)) {
      HALFSTEP_CHECK((LaunchTile<T, kKind>(ctx, product, tile, Set{})));
    } else {
      LaunchTensorCore<T, SmallestTile, kKind, false>(ctx, product);
    }
  };
  if (product.right.dtype() == DType::kFloat16) {
    run.template operator()<Float16>();
  } else {
    HALFSTEP_CHECK(product.right.dtype() == DType::kBFloat16);
    run.template operator()<BFloat16>();
  }
}

// Each in a file of its own.
void ForwardWithTile(const ExecContext& ctx, const MatrixProduct& product, TileShape tile);
void BackwardInputWithTile(const ExecContext& ctx, const MatrixProduct& product, TileShape tile);
void BackwardWeightWithTile(const ExecContext& ctx, const MatrixProduct& product, TileShape tile);

}  // namespace halfstep::cuda
