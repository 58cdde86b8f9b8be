// SPDX-License-Identifier: Apache-2.0
// The operations of the CUDA backend, each of the signature and the contract of its namesake in
// kernels/ops; shapes were checked by the caller. Tensors are on the device of the context unless
// the contract says otherwise, and the work may still be under way when a call returns.
#pragma once

#include "kernels/cuda/runtime.h"
#include "kernels/ops/activation.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/elementwise.h"
#include "kernels/ops/embedding.h"
#include "kernels/ops/fused.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/log_prob.h"
#include "kernels/ops/norm.h"
#include "kernels/ops/optimizer.h"
#include "kernels/ops/rope.h"
#include "kernels/ops/sampling.h"

namespace halfstep::cuda {

// Declares cuda::op as a function of the type of halfstep::op.
#define HALFSTEP_CUDA_OPERATION_(op) HALFSTEP_MAY_BE_ABSENT decltype(::halfstep::op) op

HALFSTEP_CUDA_OPERATION_(Accumulate);
HALFSTEP_CUDA_OPERATION_(Add);
HALFSTEP_CUDA_OPERATION_(AddRmsNorm);
HALFSTEP_CUDA_OPERATION_(AdamW);
HALFSTEP_CUDA_OPERATION_(Cast);
HALFSTEP_CUDA_OPERATION_(CausalAttention);
HALFSTEP_CUDA_OPERATION_(CausalAttentionBackward);
HALFSTEP_CUDA_OPERATION_(ComputeGradientStatistics);
HALFSTEP_CUDA_OPERATION_(ConcatColumns);
HALFSTEP_CUDA_OPERATION_(Copy);
HALFSTEP_CUDA_OPERATION_(DecideGradient);
HALFSTEP_CUDA_OPERATION_(Embedding);
HALFSTEP_CUDA_OPERATION_(EmbeddingBackward);
HALFSTEP_CUDA_OPERATION_(FillZero);
HALFSTEP_CUDA_OPERATION_(FinishHeads);
HALFSTEP_CUDA_OPERATION_(GatherRows);
HALFSTEP_CUDA_OPERATION_(Linear);
HALFSTEP_CUDA_OPERATION_(LinearBackwardInput);
HALFSTEP_CUDA_OPERATION_(LinearBackwardWeight);
HALFSTEP_CUDA_OPERATION_(LmHeadLogProb);
HALFSTEP_CUDA_OPERATION_(LmHeadLogProbBackward);
HALFSTEP_CUDA_OPERATION_(MeasureGradient);
HALFSTEP_CUDA_OPERATION_(PagedCausalAttention);
HALFSTEP_CUDA_OPERATION_(RmsNorm);
HALFSTEP_CUDA_OPERATION_(RmsNormBackward);
HALFSTEP_CUDA_OPERATION_(Rope);
HALFSTEP_CUDA_OPERATION_(RopeBackward);
HALFSTEP_CUDA_OPERATION_(SampleTokens);
HALFSTEP_CUDA_OPERATION_(ScatterRows);
HALFSTEP_CUDA_OPERATION_(SplitColumns);
HALFSTEP_CUDA_OPERATION_(SwiGlu);
HALFSTEP_CUDA_OPERATION_(SwiGluBackward);
HALFSTEP_CUDA_OPERATION_(WriteKvCache);

#undef HALFSTEP_CUDA_OPERATION_

}  // namespace halfstep::cuda
