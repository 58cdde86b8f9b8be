// SPDX-License-Identifier: Apache-2.0
// The seam to a library of matrix products, cuBLASLt, which builds for the GPU have and the
// emulator has not.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/runtime.h"
#include "kernels/dtype.h"
#include "kernels/exec_context.h"

namespace halfstep::cuda {

// Puts `product`, of two 16-bit factors, on the stream of `ctx` as the library computes it, or
// returns false and leaves it to TensorCoreProduct: when rows are not aligned to 16 bytes, when the
// library does not know the shape, and where our kernel is the better choice or the only right one.
//
// kBitwise, forward: only algorithms that are certified. On the first product of a shape (n, k and
// m rounded up to a power of two) all that the library offers without a split of the inner index
// and without workspace are compared bit by bit with TensorCoreProduct on random data, and the
// fastest that is equal is kept where it is faster than our kernel. This waits for the stream and
// allocates memory that it gives back; while the stream is captured our kernel serves, whose bits
// are the same.
// Otherwise: the library's first choice for the rounded sizes, so that a run can be repeated; sums
// may be split, and are then added in FP32 and in a fixed order. Takes 32 MiB of the workspace of
// `ctx`.
// Throws DeviceError. Thread-safe for different streams.
HALFSTEP_MAY_BE_ABSENT bool LibraryProduct(const ExecContext& ctx, const MatrixProduct& product);

// What a certification found.
struct GemmOutcome {
  int device;
  DType factors;
  DType result;
  int64_t m, n, k;  // m: the largest of the rounded sizes that this is for
  bool bias;
  int candidates;    // algorithms without split and workspace
  int equal;         // of these, with our kernel's bits
  bool library;      // whether one of them serves
  float own_us;      // time of our kernel
  float fastest_us;  // of the fastest equal algorithm, 0 without one
};

// All certifications of this process so far. Thread-safe.
HALFSTEP_MAY_BE_ABSENT std::vector<GemmOutcome> GemmReport();

}  // namespace halfstep::cuda
