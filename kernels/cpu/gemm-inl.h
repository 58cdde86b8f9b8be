// SPDX-License-Identifier: Apache-2.0
// The register tile of every matrix product: c[r, j] = c[r, j] or 0, then one fused multiply-add
// per step of the inner index k, ascending. A lane is one output element, so neither the height of
// the tile nor the vector width changes a bit; splitting k over calls that continue in FP32 does
// not either.

#if defined(HALFSTEP_KERNELS_CPU_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFSTEP_KERNELS_CPU_GEMM_INL_H_
#undef HALFSTEP_KERNELS_CPU_GEMM_INL_H_
#else
#define HALFSTEP_KERNELS_CPU_GEMM_INL_H_
#endif

#include <array>
#include <utility>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

// 14 rows by 2 registers fill 28 of the 32 AVX-512 registers, 6 by 2 fill 12 of the 16 AVX2 ones.
#if HWY_MAX_BYTES == 64
inline constexpr int kTileRows = 14;
#else
inline constexpr int kTileRows = 6;
#endif
inline constexpr int64_t kTileLanes = static_cast<int64_t>(kPartLanes);
inline constexpr int64_t kTileColumns = 2 * kTileLanes;

// Row r, step k of the left factor is at a[r * a_row + k * a_step]; step k, column j of the right
// one at b[k * b_step + j], and b_panel further on for each further group of columns of a wide
// tile.
template <class B>
struct TileArgs {
  const float* a;
  int64_t a_row;
  const B* b;
  int64_t b_step;
  int64_t b_panel;
  int64_t steps;
  float* c;
  int64_t c_row;
  bool continued;  // c holds the chain so far
};

// Steps of a left factor packed for tiles: a_row is 1, and a_step this.
inline constexpr int64_t kPackedRows = 16;

template <int kRows, int kVecs, int kPanels, bool kPackedA, class B>
HWY_NOINLINE void Tile(const TileArgs<B>& t) {
  constexpr int kColumns = kVecs * kPanels;
  hn::Vec<F32> acc[kRows][kColumns];
  const float* a = t.a;
  const B* b = t.b;
  const int64_t a_row = kPackedA ? 1 : t.a_row;
  const int64_t b_step = t.b_step;
  const int64_t b_panel = t.b_panel;
  if (t.continued) {
    for (int r = 0; r < kRows; ++r) {
      for (int j = 0; j < kColumns; ++j) {
        acc[r][j] = hn::LoadU(kF32, t.c + r * t.c_row + j * kTileLanes);
      }
    }
  } else {
    for (int r = 0; r < kRows; ++r) {
      for (int j = 0; j < kColumns; ++j) acc[r][j] = hn::Zero(kF32);
    }
  }
  for (int64_t k = t.steps; k > 0; --k) {
    hn::Vec<F32> right[kColumns];
    for (int p = 0; p < kPanels; ++p) {
      for (int v = 0; v < kVecs; ++v) {
        right[p * kVecs + v] = LoadPart(b + p * b_panel + v * kTileLanes);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const auto left = hn::Set(kF32, a[r * a_row]);
      for (int j = 0; j < kColumns; ++j) acc[r][j] = hn::MulAdd(left, right[j], acc[r][j]);
    }
    a += kPackedA ? kPackedRows : 1;
    b += b_step;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kColumns; ++j) {
      hn::StoreU(acc[r][j], kF32, t.c + r * t.c_row + j * kTileLanes);
    }
  }
}

template <class B>
using TileFunction = void (*)(const TileArgs<B>&);

template <int kVecs, int kPanels, bool kPackedA, class B, size_t... kRow>
constexpr std::array<TileFunction<B>, sizeof...(kRow)> TileTable(std::index_sequence<kRow...>) {
  return {&Tile<static_cast<int>(kRow) + 1, kVecs, kPanels, kPackedA, B>...};
}

// Tile functions by rows - 1.
template <int kVecs, int kPanels, bool kPackedA, class B, int kMaxRows = kTileRows>
inline constexpr auto kTiles =
    TileTable<kVecs, kPanels, kPackedA, B>(std::make_index_sequence<kMaxRows>());

}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
