// SPDX-License-Identifier: Apache-2.0
// TensorObserver: sees what a training pass stores, for studies of its numeric range.
#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace halfstep {

// Values that a pass rounds to its dtype, in the order of the forward.
enum class StoredKind : uint8_t {
  kEmbedding,
  kAttentionNorm,
  kQuery,  // after the projection and, where the model norms or rotates it, after that
  kKey,    // likewise
  kValue,
  kAttention,          // probabilities times values
  kAttentionOutput,    // out projection
  kAttentionResidual,  // that plus the layer's input
  kMlpNorm,
  kGateUp,
  kActivation,   // SwiGLU
  kMlpOutput,    // down projection
  kMlpResidual,  // that plus what followed the attention: the layer's output
  kFinalNorm,
};

// Forward values, or their gradients, which carry the loss scale.
enum class StoredPass : uint8_t { kForward, kBackward };

// Called on the thread of the pass, once the tensor is complete and before its memory is used
// again. `layer` counts from 0; the final norm's is the number of layers.
class TensorObserver {
 public:
  virtual ~TensorObserver() = default;
  virtual void Observe(StoredPass pass, StoredKind kind, int64_t layer, ConstTensor values) = 0;
};

}  // namespace halfstep
