// SPDX-License-Identifier: Apache-2.0
// From a run-time element type to a template argument.
#pragma once

#include "kernels/check.h"
#include "kernels/dtype.h"

namespace halfstep {

// Calls f.operator()<Float16>(), <BFloat16>() or <float>(); write it as [&]<class T>() { ... }.
template <class F>
void DispatchFloat(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat16:
      return f.template operator()<Float16>();
    case DType::kBFloat16:
      return f.template operator()<BFloat16>();
    case DType::kFloat32:
      return f.template operator()<float>();
    default:
      CheckFailed("dtype is fp16, bf16 or fp32", Name(dtype), __FILE__, __LINE__);
  }
}

}  // namespace halfstep
