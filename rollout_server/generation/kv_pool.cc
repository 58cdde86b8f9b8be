// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation/kv_pool.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/memory.h"
#include "common/model/kv_cache.h"
#include "kernels/ops/attention.h"

namespace halfstep {

absl::StatusOr<int64_t> KvPoolBlocks(const ModelConfig& config, DType dtype,
                                     const KvPoolOptions& options) {
  const size_t block_bytes = KvCache::BytesPerBlock(config, dtype);
  const int64_t per_sequence = (options.max_sequence_tokens + kKvBlockTokens - 1) / kKvBlockTokens;
  size_t max_bytes = options.max_bytes;
  if (max_bytes == 0) {
    const size_t free = FreeMemoryBytes();
    max_bytes = free == 0 ? std::numeric_limits<size_t>::max() : free / 2;
  }
  const auto affordable = static_cast<int64_t>(max_bytes / block_bytes);
  if (affordable < per_sequence) {
    return Error(absl::StatusCode::kResourceExhausted, "KV_CACHE_TOO_SMALL",
                 absl::StrCat("a sequence of ", options.max_sequence_tokens,
                              " tokens needs a key-value cache of ", per_sequence * block_bytes,
                              " bytes, and ", max_bytes, " bytes are ",
                              options.max_bytes == 0 ? "half of what is free" : "allowed",
                              "; raise --kv-cache-bytes or shorten the job's sequences"));
  }
  return std::min(affordable, per_sequence * options.max_sequences);
}

}  // namespace halfstep
