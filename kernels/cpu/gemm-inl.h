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

// After the parameters of a lambda whose body must become part of the function around it.
#define HALFSTEP_INLINE_LAMBDA __attribute__((always_inline))

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
  // What is read after this tile: a line every `next_step` bytes is brought to the L2 cache, one in
  // `next_interval` steps, so that requests spread over the time that the tile takes.
  const void* next;
  int64_t next_step;
  int64_t next_interval;
};

// How far ahead of the tile the right factor is brought to the L1 cache.
inline constexpr int64_t kNearBytes = 512;

// Steps of a left factor packed for tiles: a_row is 1, and a_step this.
inline constexpr int64_t kPackedRows = 16;

// Calls f with the compile-time constants 0 .. count - 1: an array indexed only by them is a set of
// registers at every optimisation level.
template <int count, class F>
HWY_INLINE void Unroll(const F& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) HALFSTEP_INLINE_LAMBDA {
    (f(std::integral_constant<int, i>()), ...);
  }
  (std::make_integer_sequence<int, count>());
}

// Byte offsets of the rows of an unpacked left factor, from two base pointers seven rows apart and
// three strides: as many pointers as rows would not fit the integer registers.
template <int row>
HWY_INLINE int64_t RowOffset(int64_t one, int64_t three, int64_t five) {
  if constexpr (row == 0) return 0;
  if constexpr (row == 1 || row == 2 || row == 4) return row * one;
  if constexpr (row == 3 || row == 6) return row / 3 * three;
  return five;
}

template <int kRows, int kVecs, int kPanels, bool kPackedA, class B>
HWY_NOINLINE void Tile(const TileArgs<B>& args) {
  constexpr int kColumns = kVecs * kPanels;
  const TileArgs<B> t = args;
  hn::Vec<F32> acc[kRows][kColumns];
  if (t.continued) {
    Unroll<kRows>([&](auto r) HALFSTEP_INLINE_LAMBDA {
      Unroll<kColumns>([&](auto j) HALFSTEP_INLINE_LAMBDA {
        acc[r][j] = hn::LoadU(kF32, t.c + r * t.c_row + j * kTileLanes);
      });
    });
  } else {
    Unroll<kRows>([&](auto r) HALFSTEP_INLINE_LAMBDA {
      Unroll<kColumns>([&](auto j) HALFSTEP_INLINE_LAMBDA { acc[r][j] = hn::Zero(kF32); });
    });
  }
  const int64_t one = t.a_row * static_cast<int64_t>(sizeof(float));
  const int64_t three = 3 * one, five = 5 * one;
  const char* low = reinterpret_cast<const char*>(t.a);
  const char* high = low + 7 * one;
  const B* b = t.b;
  const char* next = static_cast<const char*>(t.next);
  int64_t until_next = 1;
  for (int64_t k = t.steps; k > 0; --k) {
    hn::Vec<F32> right[kColumns];
    if (--until_next == 0) {
      __builtin_prefetch(next, kPackedA ? 1 : 0, kPackedA ? 3 : 2);
      if constexpr (kPackedA) __builtin_prefetch(next + 64, 1, 3);
      next += t.next_step;
      until_next = t.next_interval;
    }
    Unroll<kPanels>([&](auto p) HALFSTEP_INLINE_LAMBDA {
      __builtin_prefetch(b + p * t.b_panel + kNearBytes / sizeof(B), 0, 3);
      Unroll<kVecs>([&](auto v) HALFSTEP_INLINE_LAMBDA {
        right[p * kVecs + v] = LoadPart(b + p * t.b_panel + v * kTileLanes);
      });
    });
    Unroll<kRows>([&](auto r) HALFSTEP_INLINE_LAMBDA {
      const char* address = low + 4 * r;
      if constexpr (!kPackedA) {
        address = (r < 7 ? low : high) + RowOffset<r % 7>(one, three, five);
      }
      const auto left = hn::Set(kF32, *reinterpret_cast<const float*>(address));
      Unroll<kColumns>([&](auto j) HALFSTEP_INLINE_LAMBDA {
        acc[r][j] = hn::MulAdd(left, right[j], acc[r][j]);
      });
    });
    constexpr int64_t kStepBytes = (kPackedA ? kPackedRows : 1) * sizeof(float);
    low += kStepBytes;
    high += kStepBytes;
    b += t.b_step;
  }
  Unroll<kRows>([&](auto r) HALFSTEP_INLINE_LAMBDA {
    Unroll<kColumns>([&](auto j) HALFSTEP_INLINE_LAMBDA {
      hn::StoreU(acc[r][j], kF32, t.c + r * t.c_row + j * kTileLanes);
    });
  });
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

#undef HALFSTEP_INLINE_LAMBDA

#endif  // per-target include guard
