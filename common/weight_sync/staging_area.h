// SPDX-License-Identifier: Apache-2.0
// StagingArea: where a rollout server assembles a published set of weights beside the one it
// serves. A set counts only once every byte has arrived and every tensor's digest was found to be
// right.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/base/digest.h"
#include "common/weight_sync/weight_set.h"
#include "kernels/buffer.h"

namespace halfstep {

class ModelWeights;

// Not thread-safe: one thread receives. All memory is allocated at construction.
class StagingArea {
 public:
  // Holds sets for weights like `weights`: its layout, dtype and RoPE table.
  explicit StagingArea(const ModelWeights& weights);

  // Makes `manifest` the set to receive. Names, shapes, dtypes and order must be those expected,
  // else INVALID_ARGUMENT (reason WEIGHTS_LAYOUT_MISMATCH) naming the tensor, and the area is left
  // as it was. A set of the same identity keeps what has arrived, so that a broken transfer goes
  // on; any other starts from nothing.
  absl::Status Begin(const WeightManifest& manifest);

  // Bytes of the set that are in place: where the next chunk must start.
  uint64_t offset() const { return received_; }
  // Every byte is in place and every digest right.
  bool complete() const { return manifest_ && received_ == manifest_->total_bytes; }
  // The set that Begin named; nothing before that.
  const std::optional<WeightManifest>& manifest() const { return manifest_; }

  // Takes the bytes from `offset` on, which must be offset(). INVALID_ARGUMENT (reason
  // BAD_WEIGHT_CHUNK) when it is not or when the set would be exceeded: nothing is taken.
  // DATA_LOSS (reason WEIGHTS_DIGEST_MISMATCH), naming the tensor, when a tensor ended with another
  // digest than the manifest's: offset() is then the start of that tensor. FAILED_PRECONDITION
  // before Begin.
  absl::Status Append(uint64_t offset, std::span<const uint8_t> data);

  // Copies a complete set over the parameters and RoPE table of `weights`, which must be like the
  // one given at construction. The caller packs them. FAILED_PRECONDITION unless complete().
  absl::Status CopyTo(ModelWeights* weights) const;

 private:
  absl::Status FinishTensor();
  void StartTensor();

  std::vector<TensorManifest> expected_;  // digests zero
  Buffer buffer_;
  std::optional<WeightManifest> manifest_;
  uint64_t received_ = 0;
  size_t tensor_ = 0;          // being received
  uint64_t tensor_begin_ = 0;  // its first byte
  Digester digester_;          // over what has arrived of it
};

}  // namespace halfstep
