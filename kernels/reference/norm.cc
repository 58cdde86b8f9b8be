// SPDX-License-Identifier: Apache-2.0
#include "kernels/reference/norm.h"

#include <cmath>

#include "kernels/reference/access.h"

namespace halfstep::reference {
namespace {

double ReciprocalRootMeanSquare(const double* x, int64_t width, double epsilon) {
  double sum = 0;
  for (int64_t i = 0; i < width; ++i) sum += x[i] * x[i];
  return 1 / std::sqrt(sum / static_cast<double>(width) + epsilon);
}

}  // namespace

void RmsNorm(ConstTensor x, ConstTensor weight, double epsilon, Tensor y, Tensor rstd) {
  const int64_t width = weight.dim(0);
  const double* w = weight.as<double>();
  for (int64_t r = 0; r < RowCount(x); ++r) {
    const double scale = ReciprocalRootMeanSquare(Row(x, r), width, epsilon);
    for (int64_t i = 0; i < width; ++i) Row(y, r)[i] = Row(x, r)[i] * scale * w[i];
    if (!rstd.empty()) rstd.as<double>()[r] = scale;
  }
}

void RmsNormBackward(ConstTensor dy, ConstTensor x, ConstTensor weight, double epsilon, Tensor dx,
                     Tensor dweight) {
  const int64_t width = weight.dim(0);
  const double* w = weight.as<double>();
  for (int64_t r = 0; r < RowCount(x); ++r) {
    const double scale = ReciprocalRootMeanSquare(Row(x, r), width, epsilon);
    double dot = 0;
    for (int64_t i = 0; i < width; ++i) dot += Row(dy, r)[i] * w[i] * Row(x, r)[i];
    const double mean = dot * scale * scale / static_cast<double>(width);
    for (int64_t i = 0; i < width; ++i) {
      dweight.as<double>()[i] += Row(dy, r)[i] * Row(x, r)[i] * scale;
      Row(dx, r)[i] = scale * (Row(dy, r)[i] * w[i] - Row(x, r)[i] * mean);
    }
  }
}

}  // namespace halfstep::reference
