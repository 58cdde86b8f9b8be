// SPDX-License-Identifier: Apache-2.0
// What the matrix products read and write: the right factor by panels of 32 columns, and the
// output.

#if defined(HALFSTEP_KERNELS_CPU_FACTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFSTEP_KERNELS_CPU_FACTORS_INL_H_
#undef HALFSTEP_KERNELS_CPU_FACTORS_INL_H_
#else
#define HALFSTEP_KERNELS_CPU_FACTORS_INL_H_
#endif

#include <algorithm>

#include "kernels/cpu/linear.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

// Columns that a panel has in memory and in tiles: 32, or 16 where the last panel needs no more.
inline int64_t PanelWidth(int64_t columns, int64_t panel) {
  const int64_t left = columns - panel * kPanelColumns;
  return left > kPanelAlignment ? kPanelColumns : kPanelAlignment;
}

// The right factor of the forward product: packed panels, [inner, columns] to the tiles.
template <class T>
struct PackedRight {
  using Element = T;
  static constexpr bool kPacked = true;
  const T* data;
  int64_t inner;
  int64_t columns;

  const T* At(int64_t panel, int64_t step) const {
    return data + panel * kPanelColumns * inner + step * PanelWidth(columns, panel);
  }
  int64_t StepBytes() const { return kPanelColumns * static_cast<int64_t>(sizeof(T)); }

  // FP32 copy of steps [begin, begin + steps) of a panel: [steps, width of the panel].
  void Convert(int64_t panel, int64_t begin, int64_t steps, float* to) const {
    const int64_t elements = steps * PanelWidth(columns, panel);
    const T* from = At(panel, begin);
    for (int64_t i = 0; i < elements; i += 16) Store16(Load16(from + i), to + i);
  }
};

// The right factor of dx = dy W: the plain weight, whose rows are steps of the inner index.
template <class T>
struct PlainRight {
  using Element = T;
  static constexpr bool kPacked = false;
  const T* data;
  int64_t inner;
  int64_t columns;

  const T* At(int64_t panel, int64_t step) const {
    return data + panel * kPanelColumns + step * columns;
  }
  int64_t StepBytes() const { return columns * static_cast<int64_t>(sizeof(T)); }

  void Convert(int64_t panel, int64_t begin, int64_t steps, float* to) const {
    const int64_t width = PanelWidth(columns, panel);
    const int64_t used = std::min(width, columns - panel * kPanelColumns);
    const T* from = At(panel, begin);
    if (used == kPanelColumns) {
      for (int64_t k = 0; k < steps; ++k, from += columns, to += kPanelColumns) {
        Store16(Load16(from), to);
        Store16(Load16(from + 16), to + 16);
      }
      return;
    }
    for (int64_t k = 0; k < steps; ++k, from += columns, to += width) {
      for (int64_t j = 0; j < width; j += 16) {
        Store16(Load16(from + j, static_cast<size_t>(std::max<int64_t>(0, used - j))), to + j);
      }
    }
  }
};

// Where finished chains go: bias, then one rounding.
template <class Y, class T>
struct Output {
  Y* y;
  const T* bias;  // or null
  int64_t columns;
  bool saturate;

  // Stores rows [row, row + rows) of a panel, whose chains are `stride` apart; returns how many
  // stores were saturated.
  size_t Store(int64_t row, int64_t rows, int64_t panel, const float* chains,
               int64_t stride) const {
    const int64_t column = panel * kPanelColumns;
    const int64_t count = std::min(kPanelColumns, columns - column);
    Y* to = y + row * columns + column;
    size_t saturated = 0;
    for (int64_t j = 0; j < count; j += 16) {
      const auto used = static_cast<size_t>(std::min<int64_t>(16, count - j));
      const F32x16 b = bias == nullptr ? Zero16() : Load16(bias + column + j, used);
      for (int64_t r = 0; r < rows; ++r) {
        F32x16 v = Load16(chains + r * stride + j);
        if (bias != nullptr) v = v + b;  // a sum of -0 stays -0 without one
        Y* const element = to + r * columns + j;
        if (saturate) {
          saturated += StoreSaturated16(v, element, used);
        } else {
          Store16(v, element, used);
        }
      }
    }
    return saturated;
  }
};

// FP32 copy of columns [begin, end) of rows [row, row + rows) of a [.., columns] matrix, `stride`
// apart; up to 15 elements beyond `end` are overwritten.
template <class A>
void ConvertRows(const A* matrix, int64_t columns, int64_t row, int64_t rows, int64_t begin,
                 int64_t end, float* to, int64_t stride) {
  for (const int64_t last = row + rows; row < last; ++row, to += stride) {
    const A* const from = matrix + row * columns + begin;
    const int64_t count = end - begin;
    int64_t k = 0;
    for (; k + 16 <= count; k += 16) Store16(Load16(from + k), to + k);
    if (k < count) Store16(Load16(from + k, static_cast<size_t>(count - k)), to + k);
  }
}

}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
