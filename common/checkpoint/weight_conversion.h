// SPDX-License-Identifier: Apache-2.0
// Converting weights between file and memory, counting what must not get in.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace halfstep {

struct ConversionCounts {
  int64_t non_finite = 0;    // NaN and Inf in the source
  int64_t out_of_range = 0;  // finite, but beyond the largest fp16 value when `to` is fp16
};

// Converts `count` elements between fp16, bf16 and fp32, round to nearest even.
ConversionCounts ConvertWeights(const void* from, DType from_dtype, int64_t count, DType to_dtype,
                                void* to);

}  // namespace halfstep
