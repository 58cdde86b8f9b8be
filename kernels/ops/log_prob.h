// SPDX-License-Identifier: Apache-2.0
// LM head, log-softmax, log-prob of the chosen token and entropy.
//
// The log-prob of token y is log_softmax(logits / temperature)[y] in FP32, before any top-k, top-p
// or min-p cut. Rollout (SampleTokens) and learner (LmHeadLogProb) run the same row function, so
// equal logits give equal bits.
#pragma once

#include "kernels/exec_context.h"
#include "kernels/ops/linear.h"
#include "kernels/tensor.h"

namespace halfstep {

// hidden: [rows, hidden] in the dtype of the head or FP32; head.weight: [vocab, hidden]; targets:
// int32 [rows], below vocab.
// Chunks over rows, so that FP32 logits never exist for more than a few rows at a time.
// log_probs: FP32 [rows]. entropy: FP32 [rows], nats, or empty. lse: FP32 [rows], log-sum-exp of
// logits / temperature, saved for the backward, or empty. A row with a non-finite logit gives NaN.
void LmHeadLogProb(const ExecContext& ctx, ConstTensor hidden, const LinearWeight& head,
                   ConstTensor targets, float temperature, Tensor log_probs, Tensor entropy,
                   Tensor lse);

// The part of a loss that goes through the entropy H of each row: weights[r] * -H[r], such as an
// entropy bonus. Both FP32 [rows], or both empty: there is none.
struct EntropyTerm {
  ConstTensor weights = {};  // with the loss scale
  ConstTensor entropy = {};  // nats, of LmHeadLogProb
};

// dlogits[r, j] = dlog_probs[r] * (1[j = target] - p[r, j]) / temperature, rounded to the dtype of
// `hidden` after the multiplication (dlog_probs carries the loss scale).
// With an entropy term, weights[r] * p[r, j] * (log p[r, j] + H[r]) / temperature is added before
// that rounding; a row of weight 0 has the bits of a row without it.
// dlog_probs: FP32 [rows]; dhidden: [rows, hidden] in that dtype, overwritten; dhead: FP32 [vocab,
// hidden], accumulates in ascending row order, as LinearBackwardWeight does (on CUDA a split of the
// rows over calls changes no bit where that promises it, and parts are multiples of 16).
void LmHeadLogProbBackward(const ExecContext& ctx, ConstTensor dlog_probs, ConstTensor hidden,
                           const LinearWeight& head, ConstTensor targets, float temperature,
                           ConstTensor lse, Tensor dhidden, Tensor dhead,
                           const EntropyTerm& entropy_term = {});

}  // namespace halfstep
