// SPDX-License-Identifier: Apache-2.0
#include "kernels/reference/rope.h"

#include "kernels/reference/access.h"

namespace halfstep::reference {
namespace {

// Rotates each pair (x[i], x[i + half]) by the angle of its position, or by the opposite angle.
void Rotate(ConstTensor x, ConstTensor positions, ConstTensor table, double sign, Tensor y) {
  const int64_t heads = x.dim(1);
  const int64_t half = x.dim(2) / 2;
  for (int64_t r = 0; r < RowCount(x); ++r) {
    const int64_t position = positions.as<int32_t>()[r / heads];
    const double* cosines = table.as<double>() + position * 2 * half;
    const double* sines = cosines + half;
    for (int64_t i = 0; i < half; ++i) {
      const double a = Row(x, r)[i];
      const double b = Row(x, r)[i + half];
      Row(y, r)[i] = a * cosines[i] - b * sign * sines[i];
      Row(y, r)[i + half] = b * cosines[i] + a * sign * sines[i];
    }
  }
}

}  // namespace

void Rope(ConstTensor x, ConstTensor positions, ConstTensor table, Tensor y) {
  Rotate(x, positions, table, 1, y);
}

void RopeBackward(ConstTensor dy, ConstTensor positions, ConstTensor table, Tensor dx) {
  Rotate(dy, positions, table, -1, dx);
}

}  // namespace halfstep::reference
