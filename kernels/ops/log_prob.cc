// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/log_prob.h"

#include "kernels/cpu/log_prob.h"
#include "kernels/dispatch.h"

namespace halfstep {
namespace {

void CheckRows(ConstTensor per_row, DType dtype, int64_t rows) {
  HALFSTEP_CHECK_EQ(per_row.shape(), (Shape{rows}));
  HALFSTEP_CHECK(per_row.dtype() == dtype);
}

void CheckHead(ConstTensor hidden, const LinearWeight& head, ConstTensor targets,
               float temperature) {
  HALFSTEP_CHECK_EQ(hidden.rank(), 2);
  HALFSTEP_CHECK_EQ(head.weight.rank(), 2);
  HALFSTEP_CHECK_EQ(hidden.dim(1), head.weight.dim(1));
  HALFSTEP_CHECK(hidden.dtype() == head.weight.dtype() || hidden.dtype() == DType::kFloat32);
  HALFSTEP_CHECK_GT(head.weight.dim(0), 0);
  HALFSTEP_CHECK_GT(temperature, 0.0f);
  CheckRows(targets, DType::kInt32, hidden.dim(0));
}

}  // namespace

void LmHeadLogProb(const ExecContext& ctx, ConstTensor hidden, const LinearWeight& head,
                   ConstTensor targets, float temperature, Tensor log_probs, Tensor entropy,
                   Tensor lse) {
  CheckHead(hidden, head, targets, temperature);
  const int64_t rows = hidden.dim(0);
  CheckRows(log_probs, DType::kFloat32, rows);
  if (!entropy.empty()) CheckRows(entropy, DType::kFloat32, rows);
  if (!lse.empty()) CheckRows(lse, DType::kFloat32, rows);
  HALFSTEP_DISPATCH(ctx, LmHeadLogProb, hidden, head, targets, temperature, log_probs, entropy,
                    lse);
}

void LmHeadLogProbBackward(const ExecContext& ctx, ConstTensor dlog_probs, ConstTensor hidden,
                           const LinearWeight& head, ConstTensor targets, float temperature,
                           ConstTensor lse, Tensor dhidden, Tensor dhead,
                           const EntropyTerm& entropy_term) {
  CheckHead(hidden, head, targets, temperature);
  CheckRows(dlog_probs, DType::kFloat32, hidden.dim(0));
  CheckRows(lse, DType::kFloat32, hidden.dim(0));
  HALFSTEP_CHECK_EQ(entropy_term.weights.empty(), entropy_term.entropy.empty());
  if (!entropy_term.weights.empty()) {
    CheckRows(entropy_term.weights, DType::kFloat32, hidden.dim(0));
    CheckRows(entropy_term.entropy, DType::kFloat32, hidden.dim(0));
  }
  HALFSTEP_CHECK_EQ(dhidden.shape(), hidden.shape());
  HALFSTEP_CHECK(dhidden.dtype() == hidden.dtype());
  HALFSTEP_CHECK_EQ(dhead.shape(), head.weight.shape());
  HALFSTEP_CHECK(dhead.dtype() == DType::kFloat32);
  HALFSTEP_DISPATCH(ctx, LmHeadLogProbBackward, dlog_probs, hidden, head, targets, temperature, lse,
                    dhidden, dhead, entropy_term);
}

}  // namespace halfstep
