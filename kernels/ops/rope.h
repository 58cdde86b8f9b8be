// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split layout of Hugging Face:
// element i of a head pairs with element i + head_dim / 2.
#pragma once

#include <optional>

#include "kernels/exec_context.h"
#include "kernels/tensor.h"

namespace halfstep {

// Frequency scaling of Llama 3.1 (rope_type "llama3").
struct Llama3RopeScaling {
  double factor = 8.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_positions = 8192;
};

struct RopeParameters {
  double theta = 10000.0;
  std::optional<Llama3RopeScaling> llama3;
};

// Fills table: FP32 [positions, 2, head_dim / 2], cosines then sines of position * frequency.
// Computed in double on the host and rounded once, so both engines may share the same bytes. CPU
// memory only; CUDA takes a copy (ops/elementwise.h).
void FillRopeTable(const RopeParameters& parameters, Tensor table);

// x, y: [tokens, heads, head_dim] (may be the same memory); positions: int32 [tokens], below
// table.dim(0). Computed in FP32, rounded on the store. A position outside the table is CHECKed on
// the CPU; on CUDA, where the host does not see it, the token becomes NaN.
void Rope(const ExecContext& ctx, ConstTensor x, ConstTensor positions, ConstTensor table,
          Tensor y);

// The transposed rotation. dx overwritten (may be the memory of dy).
void RopeBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor positions, ConstTensor table,
                  Tensor dx);

}  // namespace halfstep
