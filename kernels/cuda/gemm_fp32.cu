// SPDX-License-Identifier: Apache-2.0
// Products with an FP32 factor: each element is one chain of fused multiply-adds over the ascending
// inner index in the register of one thread, the chain of the CPU backend, so no tile and no split
// of the tokens changes its bits. What does not come in FP32 is converted on its way to shared
// memory, which is exact.
//
// A thread of the large tile does 64 multiply-adds for four 16-byte reads of shared memory, about
// what it takes for the arithmetic to be the limit.
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.h"
#include "kernels/dispatch_float.h"

namespace halfstep::cuda {
namespace {

constexpr int kDepth = 16;   // of the inner index in shared memory at a time
constexpr int kGroup = 4;    // neighbours that a thread reads at once
constexpr int kPadding = 4;  // against two rows on the same banks

// Threads down and across, and groups of kGroup rows and columns of each.
template <int down, int across, int groups>
struct Fp32Tile {
  static constexpr int kAcross = across;
  static constexpr int kGroups = groups;
  static constexpr int kThreads = down * across;
  static constexpr int kRows = down * groups * kGroup;
  static constexpr int kColumns = across * groups * kGroup;
  static constexpr int kStageElements = kDepth * (kRows + kColumns + 2 * kPadding);
  static constexpr size_t kSharedBytes = 2 * kStageElements * sizeof(float);
};
using LargeTile = Fp32Tile<16, 16, 2>;
using SmallTile = Fp32Tile<4, 16, 1>;
// From this many large tiles on, about half the multiprocessors of an H100.
constexpr int64_t kManyTiles = 64;

template <class Right, class Result>
struct Fp32Arguments {
  int m, n, k;
  Pointer<const float> left;
  Pointer<const Right> right, bias;
  Pointer<Result> result;
};

// kOuter rows of m (or columns of n) by kDepth of the inner index, from global memory through
// registers to shared memory, where the outer index is the fast one. Threads read neighbours of
// global memory.
template <class T, int kOuter, bool kByInner, int kThreads>
class Fp32Factor {
 public:
  static constexpr int kStride = kOuter + kPadding;

  HALFSTEP_DEVICE Fp32Factor(Pointer<const T> matrix, int outer, int inner, int first_outer)
      : matrix_(matrix), outer_(outer), inner_(inner), first_outer_(first_outer) {}

  // Inner indices from `at` on, zeros outside of the matrix.
  HALFSTEP_DEVICE void Read(int at) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int outer = first_outer_ + Outer(i), inner = at + Inner(i);
      const int64_t element =
          kByInner ? int64_t{outer} * inner_ + inner : int64_t{inner} * outer_ + outer;
      values_[i] = outer < outer_ && inner < inner_ ? Widen(matrix_[element]) : 0.0f;
    }
  }
  HALFSTEP_DEVICE void Write(Pointer<float> to) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[Inner(i) * kStride + Outer(i)] = values_[i];
  }

 private:
  static constexpr int kCount = kOuter * kDepth / kThreads;
  static_assert(kCount * kThreads == kOuter * kDepth);

  HALFSTEP_DEVICE static int Outer(int i) {
    const int place = ThreadIndex() + i * kThreads;
    return kByInner ? place / kDepth : place % kOuter;
  }
  HALFSTEP_DEVICE static int Inner(int i) {
    const int place = ThreadIndex() + i * kThreads;
    return kByInner ? place % kDepth : place / kOuter;
  }

  Pointer<const T> matrix_;
  int outer_, inner_, first_outer_;
  float values_[kCount];
};

template <class Tile>
HALFSTEP_DEVICE void ReadGroups(Pointer<const float> from, int threads, int thread,
                                float (&values)[Tile::kGroups][kGroup]) {
#pragma unroll
  for (int g = 0; g < Tile::kGroups; ++g) {
    const Pack<float> pack = LoadPack(from, (g * threads + thread) * kGroup);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) values[g][i] = pack.values[i];
  }
}

template <class Right, class Result, class Tile, ProductKind kKind>
HALFSTEP_KERNEL void HALFSTEP_LAUNCH_BOUNDS(Tile::kThreads, 1)
    Fp32Gemm(Fp32Arguments<Right, Result> arg) {
  using LeftFactor = Fp32Factor<float, Tile::kRows, LeftByInner(kKind), Tile::kThreads>;
  using RightFactor = Fp32Factor<Right, Tile::kColumns, RightByInner(kKind), Tile::kThreads>;
  constexpr int kGroups = Tile::kGroups;
  constexpr int kDown = Tile::kThreads / Tile::kAcross;
  const int down = ThreadIndex() / Tile::kAcross, across = ThreadIndex() % Tile::kAcross;
  const int row0 = BlockX() * Tile::kRows, column0 = BlockY() * Tile::kColumns;

  // Calls f(element, sum) for the elements of this thread.
  float sum[kGroups][kGroup][kGroups][kGroup] = {};
  const auto for_each = [&](auto&& f) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        const int row = row0 + (g * kDown + down) * kGroup + i;
#pragma unroll
        for (int h = 0; h < kGroups; ++h) {
#pragma unroll
          for (int j = 0; j < kGroup; ++j) {
            const int column = column0 + (h * Tile::kAcross + across) * kGroup + j;
            if (row < arg.m && column < arg.n) f(row, column, sum[g][i][h][j]);
          }
        }
      }
    }
  };
  const auto element = [&](int row, int column) { return int64_t{row} * arg.n + column; };
  if constexpr (kKind == ProductKind::kBackwardWeight) {
    for_each([&](int row, int column, float& value) { value = arg.result[element(row, column)]; });
  }

  const auto stage = [](int s) {
    return SharedMemory<float>(static_cast<size_t>(s) * Tile::kStageElements * sizeof(float),
                               Tile::kStageElements);
  };
  const auto multiply = [&](Pointer<const float> from, int depth) {
    float a[kGroups][kGroup], b[kGroups][kGroup];
    ReadGroups<Tile>(from + depth * LeftFactor::kStride, kDown, down, a);
    ReadGroups<Tile>(from + (kDepth * LeftFactor::kStride + depth * RightFactor::kStride),
                     Tile::kAcross, across, b);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
#pragma unroll
        for (int h = 0; h < kGroups; ++h) {
#pragma unroll
          for (int j = 0; j < kGroup; ++j) sum[g][i][h][j] = Fma(a[g][i], b[h][j], sum[g][i][h][j]);
        }
      }
    }
  };
  LeftFactor left(arg.left, arg.m, arg.k, row0);
  RightFactor right(arg.right, arg.n, arg.k, column0);
  left.Read(0);
  right.Read(0);
  for (int at = 0, s = 0; at < arg.k; at += kDepth, s ^= 1) {
    left.Write(stage(s));
    right.Write(stage(s) + kDepth * LeftFactor::kStride);
    SyncBlock();  // The other stage is read until the next one.
    if (at + kDepth < arg.k) {
      left.Read(at + kDepth);
      right.Read(at + kDepth);
    }
    const Pointer<const float> from = stage(s);
    if (arg.k - at >= kDepth) {
#pragma unroll
      for (int depth = 0; depth < kDepth; ++depth) multiply(from, depth);
    } else {
#pragma unroll 1
      for (int depth = 0; depth < arg.k - at; ++depth) multiply(from, depth);
    }
  }
  for_each([&](int row, int column, float value) {
    if constexpr (kKind == ProductKind::kForward) {
      if (!arg.bias.empty()) value += Widen(arg.bias[column]);
    }
    arg.result[element(row, column)] = Round<Result>(value);
  });
}

template <class Right, class Result, ProductKind kKind>
void RunFp32(const ExecContext& ctx, const MatrixProduct& product) {
  const int64_t m = product.m(), n = product.n();
  const Fp32Arguments<Right, Result> arg{
      static_cast<int>(m),
      static_cast<int>(n),
      static_cast<int>(product.k()),
      PointerTo<const float>(product.left),
      PointerTo<const Right>(product.right),
      PointerTo<const Right>(product.bias),
      PointerTo<Result>(product.result),
  };
  const auto launch = [&]<class Tile>() {
    const LaunchShape shape{"FP32 matrix product", CeilDivide(m, Tile::kRows),
                            CeilDivide(n, Tile::kColumns), Tile::kThreads, Tile::kSharedBytes};
    Launch(ctx, shape, Fp32Gemm<Right, Result, Tile, kKind>, arg);
  };
  const int64_t tiles = CeilDivide(m, LargeTile::kRows) * CeilDivide(n, LargeTile::kColumns);
  if (m > SmallTile::kRows && tiles >= kManyTiles) {
    launch.template operator()<LargeTile>();
  } else {
    launch.template operator()<SmallTile>();
  }
}

}  // namespace

void Fp32Product(const ExecContext& ctx, const MatrixProduct& product) {
  const bool wide = product.result.dtype() == DType::kFloat32;
  DispatchFloat(product.right.dtype(), [&]<class Right>() {
    switch (product.kind) {
      case ProductKind::kForward:
        return RunFp32<Right, float, ProductKind::kForward>(ctx, product);
      case ProductKind::kBackwardInput:
        if (wide) return RunFp32<Right, float, ProductKind::kBackwardInput>(ctx, product);
        return RunFp32<Right, Right, ProductKind::kBackwardInput>(ctx, product);
      case ProductKind::kBackwardWeight:
        return RunFp32<Right, float, ProductKind::kBackwardWeight>(ctx, product);
    }
  });
}

}  // namespace halfstep::cuda
