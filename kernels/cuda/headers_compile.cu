// SPDX-License-Identifier: Apache-2.0
// Every public header of kernels as nvcc sees it: none may assume the CPU.
#include "kernels/device.h"
#include "kernels/dtype.h"
#include "kernels/exec_context.h"
#include "kernels/ops/activation.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/elementwise.h"
#include "kernels/ops/embedding.h"
#include "kernels/ops/fused.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/log_prob.h"
#include "kernels/ops/norm.h"
#include "kernels/ops/optimizer.h"
#include "kernels/ops/rope.h"
#include "kernels/ops/sampling.h"
#include "kernels/philox.h"
#include "kernels/tensor.h"

namespace halfstep::cuda {

// What device code shares with the CPU bit by bit: random numbers and the 16-bit formats.
__global__ void RoundUniform(PhiloxKey key, Float16* out) {
  const uint32_t bits = Philox4x32({{threadIdx.x, 0, 0, 0}}, key)[0];
  out[threadIdx.x] = ToFloat16(UniformFromBits(bits));
}

}  // namespace halfstep::cuda
