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

#if HWY_MAX_BYTES == 64
inline constexpr int kVectorRegisters = 32;
inline constexpr int kGemmTileRows = 14;
#else
inline constexpr int kVectorRegisters = 16;
inline constexpr int kGemmTileRows = 6;
#endif
inline constexpr int64_t kTileLanes = static_cast<int64_t>(kPartLanes);
inline constexpr int64_t kTileColumns = 2 * kTileLanes;

// The rows a tile of kVecs registers by kPanels groups of columns may have: its chains, one step of
// the right factor and one element of the left one are registers.
template <int kVecs, int kPanels>
inline constexpr int kMaxGemmTileRows = std::min(kGemmTileRows,
                                                 (kVectorRegisters - 1) / (kVecs * kPanels) - 1);

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
  // What comes after this tile, if it does not stream: a line of the right factor (kRows, to the L2
  // cache) or of c (kPacked, two lines, to the L1 cache) every `next_step` bytes is asked for in
  // one of `next_interval` turns of kTurnSteps steps, so that requests spread over the tile's time.
  const void* next;
  int64_t next_step;
  int64_t next_interval;
};

// Steps per turn of a tile's loop. Counting and advancing cost a tile of 12 multiply-adds a fifth
// of its instructions, and the number of instructions limits a core that two threads share; a tile
// of 28 has less to gain and more to compile.
inline constexpr int kTurnSteps = HWY_MAX_BYTES == 64 ? 2 : 4;

// Steps of a left factor packed for tiles: a_row is 1, and a_step this.
inline constexpr int64_t kPackedRows = (kGemmTileRows + 7) / 8 * 8;

// How a tile reads its factors.
enum class TileSource {
  kRows,    // the left factor by rows: a_step is 1
  kStream,  // the same, and the right factor comes from memory, which is asked for ahead
  kPacked,  // the left factor packed
};

template <class B>
using TileFunction = void (*)(const TileArgs<B>&);

// The tile of `rows` (1 to kMaxGemmTileRows) by kPanels groups of kVecs registers. Defined in
// gemm_tiles.cc for the shapes that the products use.
template <int kVecs, int kPanels, TileSource kSource, class B>
TileFunction<B> TileFor(int64_t rows);

// For the fast profile: rows times one panel of kVecs registers, its steps in two halves whose
// chains run side by side and are added at the end. One chain for each output element waits for the
// latency of a multiply-add at every step. a_row, b_step, steps and c_row are those of args;
// args.continued is false.
template <int kVecs>
inline constexpr int kMaxSplitTileRows = std::min(3, (kVectorRegisters - 2) / (2 * kVecs));
template <int kVecs, class B>
TileFunction<B> SplitTileFor(int64_t rows);

}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
