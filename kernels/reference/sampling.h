// SPDX-License-Identifier: Apache-2.0
// Specification of kernels/ops/sampling.h in double.
#pragma once

#include <vector>

#include "kernels/ops/sampling.h"

namespace halfstep::reference {

// Which ids the cuts of `row` keep, by sorting the whole distribution.
std::vector<bool> KeptIds(const std::vector<double>& logits, const SamplingRow& row);

// The sampled id, from scalar Philox and double logarithms.
int32_t SampleToken(const std::vector<double>& logits, const SamplingRow& row);

}  // namespace halfstep::reference
