// SPDX-License-Identifier: Apache-2.0
// Element access for the specification: every real tensor is fp64, every index tensor is int32.
#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace halfstep::reference {

// Row `row` of a tensor seen as [rows, last dimension].
inline const double* Row(ConstTensor x, int64_t row) {
  return x.as<double>() + row * x.dim(x.rank() - 1);
}
inline double* Row(Tensor x, int64_t row) { return x.as<double>() + row * x.dim(x.rank() - 1); }

// Rows of a tensor seen as [rows, last dimension].
inline int64_t RowCount(ConstTensor x) {
  int64_t rows = 1;
  for (int axis = 0; axis + 1 < x.rank(); ++axis) rows *= x.dim(axis);
  return rows;
}

}  // namespace halfstep::reference
