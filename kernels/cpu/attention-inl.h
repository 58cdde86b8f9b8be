// SPDX-License-Identifier: Apache-2.0
// What forward and backward attention share: how keys and values are arranged, and the small matrix
// product both consist of. Included once per Highway target.
//
// The query rows of one key-value head in one sequence are numbered token by token: row r is head
// r % group of query r / group. A block of kKvBlockTokens keys is stored transposed,
// [head_dim][32], so that a lane is a key and a score is one chain over ascending head_dim; its
// values are stored [32][padded head_dim], so that a lane is an output element and a weighted sum
// is one chain over ascending keys. No tile size enters any chain.

#if defined(HALFSTEP_KERNELS_CPU_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFSTEP_KERNELS_CPU_ATTENTION_INL_H_
#undef HALFSTEP_KERNELS_CPU_ATTENTION_INL_H_
#else
#define HALFSTEP_KERNELS_CPU_ATTENTION_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/simd-inl.h"
#include "kernels/ops/attention.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

inline constexpr size_t kBlock = static_cast<size_t>(kKvBlockTokens);
static_assert(kBlock == 2 * kVirtualLanes);

// Rows that a tile computes together: as many as leave the accumulators of 32 columns in registers.
inline constexpr size_t kTileRows = kParts == 1 ? 8 : 2;

HWY_INLINE constexpr size_t PadHeadDim(size_t head_dim) {
  return (head_dim + kVirtualLanes - 1) / kVirtualLanes * kVirtualLanes;
}

// Calls f.operator()<Rows>() with the constant Rows == rows, 1 <= rows <= kTileRows.
template <size_t Rows = kTileRows, class F>
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

// sum[r][v] += a(r, k) * b[16 v ...], one step of all chains.
template <size_t Rows, size_t Vectors, class B>
HWY_INLINE void Step(const LeftFactor& a, size_t k, const B* HWY_RESTRICT b,
                     F32x16 (&sum)[Rows][Vectors]) {
  F32x16 right[Vectors];
  HWY_UNROLL(2)
  for (size_t v = 0; v < Vectors; ++v) right[v] = Load16(b + v * kVirtualLanes);
  HWY_UNROLL(8)
  for (size_t r = 0; r < Rows; ++r) {
    const F32x16 left = Set16(a.data[r * a.row_stride + k * a.k_stride]);
    HWY_UNROLL(2)
    for (size_t v = 0; v < Vectors; ++v) sum[r][v] = MulAdd(left, right[v], sum[r][v]);
  }
}

// Where a product begins: at 0, or at what c holds.
enum class Start { kZero, kContinue };

// c[r * c_stride + i] = start + sum of a(r, k) * b[k * b_stride + i] over ascending k in [0,
// count), for i in [0, 16 * Vectors). Not inlined, so that the sums live in registers.
template <Start kStart, size_t Rows, size_t Vectors, class B>
HWY_NOINLINE void Product(LeftFactor a, const B* b, size_t b_stride, size_t count, float* c,
                          size_t c_stride) {
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
  for (size_t k = 0; k < count; ++k, b += b_stride) Step(a, k, b, sum);
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
template <size_t Rows, class B>
HWY_INLINE void AddProduct(LeftFactor a, const B* b, size_t b_stride, size_t count, size_t columns,
                           float* c, size_t c_stride) {
  ForColumns(columns, [&]<size_t Vectors>(size_t begin) HWY_ATTR {
    Product<Start::kContinue, Rows, Vectors>(a, b + begin, b_stride, count, c + begin, c_stride);
  });
}

// Converts `rows` rows of head_dim elements, `stride` apart, to rows of `padded` floats; the
// padding becomes 0.
template <class T>
HWY_INLINE void LoadRows(const T* from, size_t stride, size_t rows, size_t head_dim, float* to) {
  const size_t padded = PadHeadDim(head_dim);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t d = 0; d < head_dim; d += kVirtualLanes) {
      Store16(Load16(from + r * stride + d, head_dim - d), to + r * padded + d);
    }
  }
}

// Arranges `tokens` rows of head_dim elements, `stride` apart, as transposed blocks [head_dim][32];
// the places after the last token become 0.
template <class T>
HWY_INLINE void TransposeBlocks(const T* from, size_t stride, size_t tokens, size_t head_dim,
                                float* to) {
  const size_t block_size = head_dim * kBlock;
  const size_t rest = tokens % kBlock;
  if (rest != 0) std::fill_n(to + tokens / kBlock * block_size, block_size, 0.0f);
  for (size_t t = 0; t < tokens; ++t) {
    float* column = to + t / kBlock * block_size + t % kBlock;
    for (size_t d = 0; d < head_dim; d += kVirtualLanes) {
      float lanes[kVirtualLanes];
      Store16(Load16(from + t * stride + d, head_dim - d), lanes);
      const size_t used = std::min(head_dim - d, kVirtualLanes);
      for (size_t i = 0; i < used; ++i) column[(d + i) * kBlock] = lanes[i];
    }
  }
}

}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
