// SPDX-License-Identifier: Apache-2.0
// The numerics fingerprint: two machines that agree on it compute the same bits.
#pragma once

#include <string>

#include "kernels/exec_context.h"

namespace halfstep {

// XXH3-128, hexadecimal, over what two fixed small models give on the backend of `ctx` in each
// dtype, with 16-bit weights also beside parts in FP32: hidden states of the training pass and of a
// chunked inference pass, log-probs, entropies and sampled tokens. Between them they use every
// operation of the forward path. Independent of the number of threads. Takes some milliseconds.
std::string NumericsFingerprint(const ExecContext& ctx);

}  // namespace halfstep
