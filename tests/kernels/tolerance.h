// SPDX-License-Identifier: Apache-2.0
// Every numeric tolerance of the tests, with its reason. "Relative" is the relative L2 distance to
// the FP64 specification on the same rounded inputs. One unit of roundoff u is 2^-11 in FP16, 2^-8
// in BF16, 2^-24 in FP32; a single rounding to nearest leaves about 0.4 u in relative L2.
#pragma once

#include "kernels/dtype.h"

namespace halfstep::tolerance {

// FP16 figures scale by the ratio of the unit roundoffs where the last rounding dominates; results
// kept in FP32 are bounded by the error of their FP32 arithmetic instead.
constexpr double PerDType(DType dtype, double fp16, double fp32) {
  switch (dtype) {
    case DType::kFloat16:
      return fp16;
    case DType::kBFloat16:
      return 8 * fp16;
    default:
      return fp32;
  }
}

// Matrix products: one rounding on the store after an FP32 chain over the inner index.
constexpr double Gemm(DType out) { return PerDType(out, 3e-4, 2e-5); }

// Attention output: P is rounded before P V and the output once more, so two roundings.
constexpr double AttentionOut(DType dtype) { return PerDType(dtype, 4e-4, 2e-6); }
// Log-sum-exp, absolute: FP32 scores of magnitude about 10 and an FP32 sum.
inline constexpr double kAttentionLse = 2e-5;
// dQ, dK, dV: rounded out, dout and P enter sums whose terms cancel (dP - delta).
constexpr double AttentionGradient(DType dtype) { return PerDType(dtype, 1.5e-3, 1e-5); }

// RMSNorm, RoPE, SwiGLU: FP32 arithmetic and one rounding on the store; backward has a cancellation
// or a reciprocal more.
constexpr double RowOpForward(DType dtype) { return PerDType(dtype, 4e-4, 2e-6); }
constexpr double RowOpBackward(DType dtype) { return PerDType(dtype, 6e-4, 4e-6); }

// FP32 accumulators of parameter gradients: a chain over rows, never rounded to 16 bits.
inline constexpr double kWeightGradient = 3e-5;

// Log-probs of equal logits, absolute: FP32 exp and log within two units in the last place.
inline constexpr double kLogProb = 1e-5;

// Ten steps of AdamW in FP32 against double.
inline constexpr double kAdamW = 1e-6;

// Central differences in double with step 1e-5: truncation about 1e-10, roundoff about 1e-11, times
// the condition of the functions tested.
inline constexpr double kFiniteDifference = 1e-6;

// Squared norms: FP64 partial sums of exact FP64 squares.
inline constexpr double kSquaredNorm = 1e-12;

// Whole models in FP32 against torch and transformers in FP32, which add in another order: u on
// logits of magnitude about 10 is 1e-6 for one rounding, and a dozen layers of them leave 1e-5 in
// the log-probs, absolute, and as much of the gradients, relative. A wrong formula leaves 1e-2.
inline constexpr double kOracleLogProb = 1e-4;
inline constexpr double kOracleGradient = 1e-4;

}  // namespace halfstep::tolerance
