// SPDX-License-Identifier: Apache-2.0
// The bodies of the register tiles, apart from the code that drives them because they are many,
// large and without anything for a sanitizer to find: sanitized builds compile this file plainly.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm_tiles.cc"
#include "hwy/foreach_target.h"  // must come before highway.h

#include <array>
#include <utility>

#include "kernels/cpu/gemm-inl.h"

// After the parameters of a lambda whose body must become part of the function around it.
#undef HALFSTEP_INLINE_LAMBDA
#define HALFSTEP_INLINE_LAMBDA __attribute__((always_inline))

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

// How far ahead of a tile the memory that it streams is asked for, over all its panels: far where
// nothing but that memory is the limit.
template <int kRows>
inline constexpr int64_t kStreamBytes = kRows <= 2 ? 8192 : 4096;
// Calls f with the compile-time constants 0 .. count - 1: an array indexed only by them is a set of
// registers at every optimisation level.
template <int count, class F>
HWY_INLINE void Unroll(const F& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) HALFSTEP_INLINE_LAMBDA {
    (f(std::integral_constant<int, i>()), ...);
  }
  (std::make_integer_sequence<int, count>());
}

// sum += a * b in one rounding, in the register that holds the sum. Through an intrinsic the
// compiler may write the sum over a factor instead, and in a tile that fills all registers it does,
// at the price of moves and spilled chains.
HWY_INLINE void MultiplyAdd(hn::Vec<F32> a, hn::Vec<F32> b, hn::Vec<F32>& sum) {
  asm("vfmadd231ps %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
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

template <int kRows, int kVecs, int kPanels, TileSource kSource, class B>
HWY_NOINLINE void Tile(const TileArgs<B>& args) {
  constexpr int kColumns = kVecs * kPanels;
  constexpr bool kPacked = kSource == TileSource::kPacked;
  constexpr int64_t kStepBytes = (kPacked ? kPackedRows : 1) * sizeof(float);
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
  const auto step = [&](auto u) HALFSTEP_INLINE_LAMBDA {
    hn::Vec<F32> right[kColumns];
    Unroll<kPanels>([&](auto p) HALFSTEP_INLINE_LAMBDA {
      const B* const from = b + u * t.b_step + p * t.b_panel;
      if constexpr (kSource == TileSource::kStream) {
        __builtin_prefetch(reinterpret_cast<const char*>(from) + kStreamBytes<kRows> / kPanels, 0,
                           3);
      }
      Unroll<kVecs>([&](auto v) HALFSTEP_INLINE_LAMBDA {
        right[p * kVecs + v] = LoadPart(from + v * kTileLanes);
      });
    });
    Unroll<kRows>([&](auto r) HALFSTEP_INLINE_LAMBDA {
      const char* address = low + 4 * r;
      if constexpr (!kPacked) address = (r < 7 ? low : high) + RowOffset<r % 7>(one, three, five);
      const auto left = hn::Set(kF32, *reinterpret_cast<const float*>(address + u * kStepBytes));
      Unroll<kColumns>([&](auto j)
                           HALFSTEP_INLINE_LAMBDA { MultiplyAdd(left, right[j], acc[r][j]); });
    });
  };
  const auto advance = [&](int64_t steps) HALFSTEP_INLINE_LAMBDA {
    low += steps * kStepBytes;
    high += steps * kStepBytes;
    b += steps * t.b_step;
  };
  int64_t left_steps = t.steps;
  const char* next = static_cast<const char*>(t.next);
  int64_t until_next = 1;
  for (; left_steps >= kTurnSteps; left_steps -= kTurnSteps) {
    if (kSource != TileSource::kStream && --until_next == 0) {
      __builtin_prefetch(next, kPacked ? 1 : 0, kPacked ? 3 : 2);
      if constexpr (kPacked) __builtin_prefetch(next + 64, 1, 3);
      next += t.next_step;
      until_next = t.next_interval;
    }
    Unroll<kTurnSteps>(step);
    advance(kTurnSteps);
  }
  for (; left_steps > 0; --left_steps) {
    step(std::integral_constant<int, 0>());
    advance(1);
  }
  Unroll<kRows>([&](auto r) HALFSTEP_INLINE_LAMBDA {
    Unroll<kColumns>([&](auto j) HALFSTEP_INLINE_LAMBDA {
      hn::StoreU(acc[r][j], kF32, t.c + r * t.c_row + j * kTileLanes);
    });
  });
}

template <int kVecs, int kPanels, TileSource kSource, class B, size_t... kRow>
constexpr std::array<TileFunction<B>, sizeof...(kRow)> Table(std::index_sequence<kRow...>) {
  return {&Tile<static_cast<int>(kRow) + 1, kVecs, kPanels, kSource, B>...};
}

template <int kVecs, int kPanels, TileSource kSource, class B>
TileFunction<B> TileFor(int64_t rows) {
  static constexpr auto kTable = Table<kVecs, kPanels, kSource, B>(
      std::make_index_sequence<kMaxGemmTileRows<kVecs, kPanels>>());
  return kTable[static_cast<size_t>(rows - 1)];
}

template <int kRows, int kVecs, class B>
HWY_NOINLINE void SplitTile(const TileArgs<B>& args) {
  const TileArgs<B> t = args;
  const int64_t half = t.steps / 2;
  hn::Vec<F32> acc[2][kRows][kVecs];
  Unroll<kRows>([&](auto r) HALFSTEP_INLINE_LAMBDA {
    Unroll<kVecs>([&](auto j) HALFSTEP_INLINE_LAMBDA {
      acc[0][r][j] = hn::Zero(kF32);
      acc[1][r][j] = hn::Zero(kF32);
    });
  });
  const auto step = [&](auto s, const float* a, const B* b) HALFSTEP_INLINE_LAMBDA {
    __builtin_prefetch(reinterpret_cast<const char*>(b) + kStreamBytes<kRows> / 2, 0, 3);
    Unroll<kVecs>([&](auto j) HALFSTEP_INLINE_LAMBDA {
      const auto right = LoadPart(b + j * kTileLanes);
      Unroll<kRows>([&](auto r) HALFSTEP_INLINE_LAMBDA {
        MultiplyAdd(hn::Set(kF32, a[r * t.a_row]), right, acc[s][r][j]);
      });
    });
  };
  for (int64_t k = 0; k < half; ++k) {
    step(std::integral_constant<int, 0>(), t.a + k, t.b + k * t.b_step);
    step(std::integral_constant<int, 1>(), t.a + half + k, t.b + (half + k) * t.b_step);
  }
  if (2 * half < t.steps) {
    step(std::integral_constant<int, 1>(), t.a + 2 * half, t.b + 2 * half * t.b_step);
  }
  Unroll<kRows>([&](auto r) HALFSTEP_INLINE_LAMBDA {
    Unroll<kVecs>([&](auto j) HALFSTEP_INLINE_LAMBDA {
      hn::StoreU(hn::Add(acc[0][r][j], acc[1][r][j]), kF32, t.c + r * t.c_row + j * kTileLanes);
    });
  });
}

template <int kVecs, class B, size_t... kRow>
constexpr std::array<TileFunction<B>, sizeof...(kRow)> SplitTable(std::index_sequence<kRow...>) {
  return {&SplitTile<static_cast<int>(kRow) + 1, kVecs, B>...};
}

template <int kVecs, class B>
TileFunction<B> SplitTileFor(int64_t rows) {
  static constexpr auto kTable =
      SplitTable<kVecs, B>(std::make_index_sequence<kMaxSplitTileRows<kVecs>>());
  return kTable[static_cast<size_t>(rows - 1)];
}

#define HALFSTEP_TILE_(kVecs, kPanels, kSource, B) \
  template TileFunction<B> TileFor<kVecs, kPanels, TileSource::kSource, B>(int64_t)
#if HWY_MAX_BYTES == 64
#define HALFSTEP_TILES_(B)                              \
  HALFSTEP_TILE_(1, 1, kStream, B);                     \
  HALFSTEP_TILE_(2, 1, kStream, B);                     \
  HALFSTEP_TILE_(2, 2, kStream, B);                     \
  HALFSTEP_TILE_(2, 4, kStream, B);                     \
  template TileFunction<B> SplitTileFor<1, B>(int64_t); \
  template TileFunction<B> SplitTileFor<2, B>(int64_t)
HALFSTEP_TILE_(1, 1, kRows, float);
HALFSTEP_TILE_(2, 1, kRows, float);
#else
#define HALFSTEP_TILES_(B)                              \
  HALFSTEP_TILE_(2, 1, kStream, B);                     \
  HALFSTEP_TILE_(4, 1, kStream, B);                     \
  template TileFunction<B> SplitTileFor<2, B>(int64_t); \
  template TileFunction<B> SplitTileFor<4, B>(int64_t); \
  HALFSTEP_TILE_(2, 1, kRows, B)
#endif
HALFSTEP_TILES_(float);
HALFSTEP_TILES_(Float16);
HALFSTEP_TILES_(BFloat16);
HALFSTEP_TILE_(2, 1, kPacked, float);
#undef HALFSTEP_TILES_
#undef HALFSTEP_TILE_

}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
