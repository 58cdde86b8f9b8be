// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/sampling.h"

#include "kernels/cpu/sampling.h"
#include "kernels/dispatch.h"

namespace halfstep {

void SampleTokens(const ExecContext& ctx, ConstTensor logits, std::span<const SamplingRow> rows,
                  Tensor tokens, Tensor log_probs) {
  HALFSTEP_CHECK_EQ(logits.rank(), 2);
  HALFSTEP_CHECK(logits.dtype() == DType::kFloat32);
  HALFSTEP_CHECK_GT(logits.dim(1), 0);
  const auto count = static_cast<int64_t>(rows.size());
  HALFSTEP_CHECK_EQ(logits.dim(0), count);
  HALFSTEP_CHECK_EQ(tokens.shape(), (Shape{count}));
  HALFSTEP_CHECK(tokens.dtype() == DType::kInt32);
  HALFSTEP_CHECK_EQ(log_probs.shape(), (Shape{count}));
  HALFSTEP_CHECK(log_probs.dtype() == DType::kFloat32);
  for (const SamplingRow& row : rows) {
    HALFSTEP_CHECK_GE(row.temperature, 0.0f);
    HALFSTEP_CHECK_GE(row.top_k, 0);
    HALFSTEP_CHECK(row.key.index < (1u << 24));
  }
  HALFSTEP_DISPATCH(ctx, SampleTokens, logits, rows, tokens, log_probs);
}

}  // namespace halfstep
