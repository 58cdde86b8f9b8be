// SPDX-License-Identifier: Apache-2.0
// For operations whose tensors may be FP32 beside weights of another dtype.
#pragma once

#include "kernels/dtype.h"

namespace halfstep {

// Calls f.operator()<float>() for FP32, else <T>(); the caller has checked that `dtype` is one of
// the two.
template <class T, class F>
void DispatchOrFloat(DType dtype, F&& f) {
  if (dtype == DType::kFloat32) return f.template operator()<float>();
  return f.template operator()<T>();
}

}  // namespace halfstep
