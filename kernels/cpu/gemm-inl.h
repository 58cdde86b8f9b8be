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

#include <algorithm>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

// 14 rows by 2 registers fill 28 of the 32 AVX-512 registers, 6 by 2 fill 12 of the 16 AVX2 ones.
#if HWY_MAX_BYTES == 64
inline constexpr int kGemmTileRows = 14;
#else
inline constexpr int kGemmTileRows = 6;
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
  // What is read after this tile: a line every `next_step` bytes is brought to the L2 cache, one in
  // `next_interval` steps, so that requests spread over the time that the tile takes.
  const void* next;
  int64_t next_step;
  int64_t next_interval;
};

// Steps of a left factor packed for tiles: a_row is 1, and a_step this.
inline constexpr int64_t kPackedRows = 16;

// The rows a tile of kVecs registers by kPanels groups of columns may have.
template <int kVecs, int kPanels>
inline constexpr int kMaxGemmTileRows = std::min(kGemmTileRows,
                                                 2 * kGemmTileRows / (kVecs * kPanels));

template <class B>
using TileFunction = void (*)(const TileArgs<B>&);

// The tile of `rows` (1 to kMaxGemmTileRows) by kPanels groups of kVecs registers; kPackedLeft: the
// left factor is packed. Defined in gemm_tiles.cc for the shapes that the products use.
template <int kVecs, int kPanels, bool kPackedLeft, class B>
TileFunction<B> TileFor(int64_t rows);

}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
