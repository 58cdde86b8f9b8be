// SPDX-License-Identifier: Apache-2.0
// How many blocks the key-value cache gets.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "common/model/model_config.h"
#include "kernels/dtype.h"

namespace halfstep {

struct KvPoolOptions {
  int64_t max_sequence_tokens = 0;  // longest prompt plus response
  int64_t max_sequences = 0;        // that can be busy at once
  // The most the cache may take; 0: half of the memory that is free now.
  size_t max_bytes = 0;
};

// What max_sequences sequences of full length need, or what fits into the limit if that is less.
// RESOURCE_EXHAUSTED (reason KV_CACHE_TOO_SMALL) when not even one sequence fits.
absl::StatusOr<int64_t> KvPoolBlocks(const ModelConfig& config, DType dtype,
                                     const KvPoolOptions& options);

}  // namespace halfstep
