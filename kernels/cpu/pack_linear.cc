// SPDX-License-Identifier: Apache-2.0
// The packed arrangement of a weight: a transposition inside panels of 32 output features.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/linear.h"
#include "kernels/cpu/parallel.h"

namespace halfstep::cpu {
namespace {

int64_t PaddedColumns(int64_t out_features) {
  return (out_features + kPanelAlignment - 1) / kPanelAlignment * kPanelAlignment;
}

// Panel of weight rows [begin, begin + rows) of the `width` columns that the panel has.
template <class Bits>
void PackPanel(const Bits* weight, int64_t in, int64_t rows, int64_t width, Bits* panel) {
  if (rows < width) std::memset(panel, 0, static_cast<size_t>(width * in) * sizeof(Bits));
  constexpr int64_t kBlock = 32;  // of in_features: the block's panel rows stay in the L1 cache
  for (int64_t begin = 0; begin < in; begin += kBlock) {
    const int64_t end = std::min(in, begin + kBlock);
    for (int64_t c = 0; c < rows; ++c) {
      const Bits* from = weight + c * in;
      for (int64_t i = begin; i < end; ++i) panel[i * width + c] = from[i];
    }
  }
}

template <class Bits>
void Pack(const ExecContext& ctx, const void* weight, int64_t out, int64_t in, void* packed) {
  const int64_t panels = (out + kPanelColumns - 1) / kPanelColumns;
  const int64_t grain = std::max<int64_t>(1, 16384 / (kPanelColumns * std::max<int64_t>(in, 1)));
  ParallelRanges(ctx, panels, grain, [&](int64_t first, int64_t last, int) {
    for (int64_t p = first; p < last; ++p) {
      const int64_t begin = p * kPanelColumns;
      const int64_t rows = std::min(kPanelColumns, out - begin);
      PackPanel(static_cast<const Bits*>(weight) + begin * in, in, rows, PaddedColumns(rows),
                static_cast<Bits*>(packed) + begin * in);
    }
  });
}

}  // namespace

size_t PackedLinearBytes(DType dtype, int64_t out_features, int64_t in_features) {
  return static_cast<size_t>(PaddedColumns(out_features) * in_features) * SizeOf(dtype);
}

void PackLinear(const ExecContext& ctx, ConstTensor weight, Tensor packed) {
  const int64_t out = weight.dim(0), in = weight.dim(1);
  if (SizeOf(weight.dtype()) == 2) {
    Pack<uint16_t>(ctx, weight.data(), out, in, packed.data());
  } else {
    Pack<uint32_t>(ctx, weight.data(), out, in, packed.data());
  }
}

}  // namespace halfstep::cpu
