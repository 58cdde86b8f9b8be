// SPDX-License-Identifier: Apache-2.0
// What forward and backward attention share: how keys and values are arranged, and the small matrix
// product both consist of. Included once per Highway target.
//
// The query rows of one key-value head in one sequence are numbered token by token, the heads of
// the group within a token. A block of kKvBlockTokens keys is stored transposed, [head_dim][32], so
// that a lane is a key and a score is one chain over ascending head_dim; its values are stored
// [32][padded head_dim], so that a lane is an output element and a weighted sum is one chain over
// ascending keys. No tile size enters any chain.

#if defined(HALFSTEP_KERNELS_CPU_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFSTEP_KERNELS_CPU_ATTENTION_INL_H_
#undef HALFSTEP_KERNELS_CPU_ATTENTION_INL_H_
#else
#define HALFSTEP_KERNELS_CPU_ATTENTION_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "hwy/cache_control.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/ops/attention.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

inline constexpr size_t kBlock = static_cast<size_t>(kKvBlockTokens);
static_assert(kBlock == 2 * kVirtualLanes);

// Rows that a tile computes together: as many as leave the accumulators of 32 columns in registers.
// Sanitizers take minutes to instrument tall tiles; short ones compute the same bits.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr size_t kAttentionTileRows = 2;
#else
inline constexpr size_t kAttentionTileRows = kParts == 1 ? 8 : 2;
#endif

HWY_INLINE constexpr size_t PadHeadDim(size_t head_dim) {
  return (head_dim + kVirtualLanes - 1) / kVirtualLanes * kVirtualLanes;
}

// Calls f.operator()<Rows>() with the constant Rows == rows, 1 <= rows <= kAttentionTileRows.
template <size_t Rows = kAttentionTileRows, class F>
HWY_INLINE void WithRows(size_t rows, const F& f) {
  if constexpr (Rows == 1) {
    f.template operator()<1>();
  } else {
    if (rows == Rows) return f.template operator()<Rows>();
    WithRows<Rows - 1>(rows, f);
  }
}

// A left factor: element (row, k) is data[row * row_stride + k * k_stride].
struct LeftFactor {
  const float* data;
  size_t row_stride;
  size_t k_stride;
};

// sum[r][v] += a(r, k) * b[head of r][16 v ...], one step of all chains. Rows are divided evenly
// among the heads, head by head.
template <size_t Rows, size_t Vectors, size_t Heads, class B>
HWY_INLINE void Step(const LeftFactor& a, size_t k, const B* const (&b)[Heads], size_t b_offset,
                     F32x16 (&sum)[Rows][Vectors]) {
  constexpr size_t kRowsPerHead = Rows / Heads;
  HWY_UNROLL(4)
  for (size_t h = 0; h < Heads; ++h) {
    F32x16 right[Vectors];
    HWY_UNROLL(2)
    for (size_t v = 0; v < Vectors; ++v) right[v] = Load16(b[h] + b_offset + v * kVirtualLanes);
    HWY_UNROLL(8)
    for (size_t i = 0; i < kRowsPerHead; ++i) {
      const size_t r = h * kRowsPerHead + i;
      const F32x16 left = Set16(a.data[r * a.row_stride + k * a.k_stride]);
      HWY_UNROLL(2)
      for (size_t v = 0; v < Vectors; ++v) sum[r][v] = MulAdd(left, right[v], sum[r][v]);
    }
  }
}

// Where a product begins: at 0, or at what c holds.
enum class Start { kZero, kContinue };

// c[r * c_stride + i] = start + sum of a(r, k) * b[head of r][k * b_stride + i] over ascending k in
// [0, count), for i in [0, 16 * Vectors). Not inlined, so that the sums live in registers.
template <Start kStart, size_t Rows, size_t Vectors, size_t Heads, class B>
HWY_NOINLINE void Product(LeftFactor a, const B* const (&b)[Heads], size_t b_stride, size_t count,
                          float* c, size_t c_stride) {
  F32x16 sum[Rows][Vectors];
  HWY_UNROLL(8)
  for (size_t r = 0; r < Rows; ++r) {
    HWY_UNROLL(2)
    for (size_t v = 0; v < Vectors; ++v) {
      if constexpr (kStart == Start::kZero) {
        sum[r][v] = Zero16();
      } else {
        sum[r][v] = Load16(c + r * c_stride + v * kVirtualLanes);
      }
    }
  }
  const B* right[Heads];
  std::copy_n(b, Heads, right);
  for (size_t k = 0; k < count; ++k) Step(a, k, right, k * b_stride, sum);
  HWY_UNROLL(8)
  for (size_t r = 0; r < Rows; ++r) {
    HWY_UNROLL(2)
    for (size_t v = 0; v < Vectors; ++v) {
      Store16(sum[r][v], c + r * c_stride + v * kVirtualLanes);
    }
  }
}

// Calls f.operator()<Vectors>(begin) for columns [begin, begin + 16 * Vectors) of [0, columns), a
// multiple of 16: pairs of vectors, and a last single one where the number of vectors is odd.
template <class F>
HWY_INLINE void ForColumns(size_t columns, const F& f) {
  size_t begin = 0;
  for (; begin + 2 * kVirtualLanes <= columns; begin += 2 * kVirtualLanes) {
    f.template operator()<2>(begin);
  }
  if (begin < columns) f.template operator()<1>(begin);
}

// Product over any number of columns, continuing from c.
template <size_t Rows>
HWY_INLINE void AddProduct(LeftFactor a, const float* b, size_t b_stride, size_t count,
                           size_t columns, float* c, size_t c_stride) {
  ForColumns(columns, [&]<size_t Vectors>(size_t begin) HWY_ATTR {
    const float* const from[1] = {b + begin};
    Product<Start::kContinue, Rows, Vectors>(a, from, b_stride, count, c + begin, c_stride);
  });
}

// Rows of one head lie far apart, where the hardware does not foresee the next one: ask for the row
// this many further on. The address may lie past the tensor, which a prefetch does not mind.
inline constexpr size_t kPrefetchRows = 16;

template <class T>
HWY_INLINE void PrefetchRow(const T* row, size_t width) {
  constexpr size_t kLine = 64 / sizeof(T);
  for (size_t d = 0; d < width; d += kLine) hwy::Prefetch(row + d);
}

// Converts `rows` rows of head_dim elements, `stride` apart, to rows of `padded` floats; the
// padding becomes 0.
template <class T>
HWY_INLINE void LoadRows(const T* from, size_t stride, size_t rows, size_t head_dim, float* to) {
  const size_t padded = PadHeadDim(head_dim);
  for (size_t r = 0; r < rows; ++r) {
    PrefetchRow(from + (r + kPrefetchRows) * stride, head_dim);
    for (size_t d = 0; d < head_dim; d += kVirtualLanes) {
      Store16(Load16(from + r * stride + d, head_dim - d), to + r * padded + d);
    }
  }
}

// Four rows of 16 elements become 16 rows of four, `stride` apart.
HWY_INLINE void StoreTransposed(const F32x16 (&row)[4], float* to, size_t stride, size_t used) {
  const hn::FixedTag<float, 4> d4;
  const hn::RepartitionToWide<U32> kPairs;
  for (size_t p = 0; p < kParts; ++p) {
    // Within every block of four lanes: a transposed square.
    const auto low01 =
        hn::BitCast(kPairs, hn::InterleaveLower(kF32, row[0].part[p], row[1].part[p]));
    const auto low23 =
        hn::BitCast(kPairs, hn::InterleaveLower(kF32, row[2].part[p], row[3].part[p]));
    const auto up01 =
        hn::BitCast(kPairs, hn::InterleaveUpper(kF32, row[0].part[p], row[1].part[p]));
    const auto up23 =
        hn::BitCast(kPairs, hn::InterleaveUpper(kF32, row[2].part[p], row[3].part[p]));
    const hn::Vec<F32> column[4] = {hn::BitCast(kF32, hn::InterleaveLower(kPairs, low01, low23)),
                                    hn::BitCast(kF32, hn::InterleaveUpper(kPairs, low01, low23)),
                                    hn::BitCast(kF32, hn::InterleaveLower(kPairs, up01, up23)),
                                    hn::BitCast(kF32, hn::InterleaveUpper(kPairs, up01, up23))};
    for (size_t j = 0; j < 4; ++j) {
      alignas(64) float lanes[kPartLanes];
      hn::Store(column[j], kF32, lanes);
      for (size_t i = p * kPartLanes + j, l = 0; l < kPartLanes && i < used; i += 4, l += 4) {
        hn::StoreU(hn::Load(d4, lanes + l), d4, to + i * stride);
      }
    }
  }
}

// Arranges `tokens` rows of head_dim elements, `stride` apart, as transposed blocks [head_dim][32];
// the places after the last token become 0.
template <class T>
HWY_INLINE void TransposeBlocks(const T* from, size_t stride, size_t tokens, size_t head_dim,
                                float* to) {
  const size_t places = (tokens + kBlock - 1) / kBlock * kBlock;
  for (size_t t = 0; t < places; t += 4) {
    for (size_t i = 0; i < 4; ++i) {
      PrefetchRow(from + (t + i + kPrefetchRows) * stride, head_dim);
    }
    float* const columns = to + t / kBlock * head_dim * kBlock + t % kBlock;
    for (size_t d = 0; d < head_dim; d += kVirtualLanes) {
      F32x16 row[4];
      for (size_t i = 0; i < 4; ++i) {
        row[i] = t + i < tokens ? Load16(from + (t + i) * stride + d, head_dim - d) : Zero16();
      }
      StoreTransposed(row, columns + d * kBlock, kBlock, head_dim - d);
    }
  }
}

}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
