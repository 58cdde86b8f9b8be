// SPDX-License-Identifier: Apache-2.0
#include "kernels/reference/activation.h"

#include <cmath>

#include "kernels/reference/access.h"

namespace halfstep::reference {

void SwiGlu(ConstTensor gate_up, Tensor y) {
  const int64_t width = gate_up.dim(1) / 2;
  for (int64_t r = 0; r < RowCount(gate_up); ++r) {
    for (int64_t i = 0; i < width; ++i) {
      const double gate = Row(gate_up, r)[i];
      const double up = Row(gate_up, r)[i + width];
      Row(y, r)[i] = gate / (1 + std::exp(-gate)) * up;
    }
  }
}

void SwiGluBackward(ConstTensor dy, ConstTensor gate_up, Tensor dgate_up) {
  const int64_t width = gate_up.dim(1) / 2;
  for (int64_t r = 0; r < RowCount(gate_up); ++r) {
    for (int64_t i = 0; i < width; ++i) {
      const double gate = Row(gate_up, r)[i];
      const double up = Row(gate_up, r)[i + width];
      const double sigmoid = 1 / (1 + std::exp(-gate));
      Row(dgate_up, r)[i] = Row(dy, r)[i] * up * sigmoid * (1 + gate * (1 - sigmoid));
      Row(dgate_up, r)[i + width] = Row(dy, r)[i] * gate * sigmoid;
    }
  }
}

}  // namespace halfstep::reference
