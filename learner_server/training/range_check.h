// SPDX-License-Identifier: Apache-2.0
// What one supervised pass of a model over given sequences stores, against what its dtype holds:
// whether the model can be trained in FP16, and with which loss scale.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>

#include "common/model/fp32_parts.h"
#include "common/model/model_weights.h"
#include "common/model/tensor_observer.h"
#include "kernels/exec_context.h"
#include "learner_server/data/batcher.h"

namespace halfstep {

// Of all values that were stored in one place.
struct RangeStatistics {
  double largest = 0;  // finite magnitude
  int64_t elements = 0;
  int64_t saturated = 0;   // beyond or at the largest finite FP16 number, 65 504
  int64_t subnormal = 0;   // below the dtype's smallest normal number, but not zero
  int64_t zero = 0;        // of rows that are not all zero: mostly values too small to store
  int64_t non_finite = 0;  // NaN and Inf

  // `values`: any shape, in a floating dtype; a row is one of the last axis.
  void Add(ConstTensor values);
  void Add(const RangeStatistics& other);
};

struct RangeCheckOptions {
  Fp32Parts fp32 = {};
  int64_t micro_batch_tokens = 4096;
};

struct RangeReport {
  using Place = std::pair<int64_t, StoredKind>;  // layer, kind
  DType dtype = DType::kFloat16;
  Fp32Parts fp32;
  int64_t sequences = 0;
  int64_t tokens = 0;  // scored

  std::map<Place, RangeStatistics> activations;
  RangeStatistics logits;  // FP32 in every precision: they cannot saturate
  // Gradients of the mean cross-entropy per token times `loss_scale`; empty where the forward is
  // not finite. Those of weights are accumulated in FP32 in every precision.
  std::map<Place, RangeStatistics> gradients;
  std::map<std::string, RangeStatistics> weight_gradients;  // by parameter
  // The largest power of two, up to 2^24, with which every gradient that is stored in the dtype
  // stays below 65 504 with two powers of two to spare. 0: not even 1 does.
  double loss_scale = 0;

  bool safe_in_fp16 = false;  // with `fp32` as it is
  // Where that is false and the stream is not FP32 yet: a second pass, in which it was, is safe.
  bool safe_with_fp32_residual = false;
  std::string verdict;  // a sentence: safe or not, and why, naming layer and kind
};

// Whether values of this kind stay FP32 with these parts.
bool StaysFp32(StoredKind kind, const Fp32Parts& fp32);

// Forward and backward of `sequences` (two tokens or more each) as the learner runs them, in the
// dtype of `weights`, which are packed. The saturated share of an FP32 or BF16 pass is what FP16
// would saturate. Where the residual stream alone, or a gradient, does not fit into FP16, all is
// run again with the stream in FP32, for the verdict. Deterministic.
RangeReport CheckRange(const ExecContext& ctx, const ModelWeights& weights,
                       std::span<const TrainSequence> sequences, const RangeCheckOptions& options);

const char* Name(StoredKind kind);
// "layer 3, gate_up"; "final_norm".
std::string PlaceName(const RangeReport::Place& place, int64_t layers);

}  // namespace halfstep
