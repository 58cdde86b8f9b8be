// SPDX-License-Identifier: Apache-2.0
#include "kernels/reference/linear.h"

#include "kernels/reference/access.h"

namespace halfstep::reference {

void Linear(ConstTensor x, ConstTensor weight, ConstTensor bias, Tensor y) {
  const int64_t out = weight.dim(0), in = weight.dim(1);
  for (int64_t t = 0; t < x.dim(0); ++t) {
    for (int64_t o = 0; o < out; ++o) {
      double sum = 0;
      for (int64_t i = 0; i < in; ++i) sum += Row(x, t)[i] * Row(weight, o)[i];
      Row(y, t)[o] = sum + (bias.empty() ? 0.0 : bias.as<double>()[o]);
    }
  }
}

void LinearBackwardInput(ConstTensor dy, ConstTensor weight, Tensor dx) {
  const int64_t out = weight.dim(0), in = weight.dim(1);
  for (int64_t t = 0; t < dy.dim(0); ++t) {
    for (int64_t i = 0; i < in; ++i) {
      double sum = 0;
      for (int64_t o = 0; o < out; ++o) sum += Row(dy, t)[o] * Row(weight, o)[i];
      Row(dx, t)[i] = sum;
    }
  }
}

void LinearBackwardWeight(ConstTensor dy, ConstTensor x, Tensor dweight, Tensor dbias) {
  const int64_t out = dweight.dim(0), in = dweight.dim(1);
  for (int64_t t = 0; t < x.dim(0); ++t) {
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t i = 0; i < in; ++i) Row(dweight, o)[i] += Row(dy, t)[o] * Row(x, t)[i];
      if (!dbias.empty()) dbias.as<double>()[o] += Row(dy, t)[o];
    }
  }
}

}  // namespace halfstep::reference
