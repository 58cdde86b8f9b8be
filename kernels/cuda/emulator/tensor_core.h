// SPDX-License-Identifier: Apache-2.0
// Hopper's matrix instruction m16n8k16 with FP16 or BF16 factors and FP32 sums, to the bit.
#pragma once

#include "kernels/dtype.h"

namespace halfstep::cuda::emulator {

// d[m][n] = d[m][n] + sum over k of a[m][k] b[n][k], in one step: the 16 exact products and the sum
// so far are aligned to the largest exponent among them, each truncated toward zero at 25 bits
// below it, added exactly, and the result truncated to FP32 (MMA-Sim, arXiv 2511.10909). The
// exponent of a product is the sum of those of its factors. With an Inf or NaN among the values the
// result is that of IEEE arithmetic.
template <class T>
void TensorCoreMultiplyAdd(const T (&a)[16][16], const T (&b)[8][16], float (&d)[16][8]);

extern template void TensorCoreMultiplyAdd<Float16>(const Float16 (&)[16][16],
                                                    const Float16 (&)[8][16], float (&)[16][8]);
extern template void TensorCoreMultiplyAdd<BFloat16>(const BFloat16 (&)[16][16],
                                                     const BFloat16 (&)[8][16], float (&)[16][8]);

}  // namespace halfstep::cuda::emulator
