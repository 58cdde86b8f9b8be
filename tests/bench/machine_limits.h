// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most, measured in short bursts so that a benchmark can measure it
// beside itself, in the same run and under the same disturbance.
#pragma once

#include <cstddef>
#include "kernels/buffer.h"

namespace halfstep::bench {

// GFLOP/s of independent FP32 fused multiply-adds in registers on `threads` threads, over about
// `seconds`.
double FmaPeak(int threads, double seconds);

// Reads the same memory again and again, each thread its own part, on the pages that weights get.
class ReadBandwidth {
 public:
  explicit ReadBandwidth(size_t bytes);
  // GB/s of one or more passes on `threads` threads, over about `seconds`.
  double Measure(int threads, double seconds);

 private:
  Buffer data_;
};

}  // namespace halfstep::bench
