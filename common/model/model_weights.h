// SPDX-License-Identifier: Apache-2.0
// ModelWeights: parameters in the dtype that computes, ready for the operations: typed views,
// packed linear weights, and the RoPE table.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "common/model/model_config.h"
#include "common/model/parameter_buffer.h"
#include "kernels/buffer.h"
#include "kernels/exec_context.h"
#include "kernels/ops/linear.h"

namespace halfstep {

// After construction or any change through parameters(), call Pack before use. Safe to read from
// many threads once packed.
class ModelWeights {
 public:
  // `rope_positions`: rows of the RoPE table, the longest sequence that will be run. The table is
  // filled from the config; a rollout overwrites it with the learner's bytes.
  ModelWeights(const ModelConfig& config, std::shared_ptr<const ParameterLayout> layout,
               DType dtype, int64_t rope_positions, Device device = kCpuDevice);

  // What such weights take.
  static size_t Bytes(const ModelConfig& config, const ParameterLayout& layout, DType dtype,
                      int64_t rope_positions, Device device = kCpuDevice);

  const ModelConfig& config() const { return config_; }
  DType dtype() const { return parameters_.dtype(); }
  ParameterBuffer& parameters() { return parameters_; }
  const ParameterBuffer& parameters() const { return parameters_; }
  Tensor rope_table() { return rope_table_.view(); }
  ConstTensor rope_table() const { return rope_table_.view(); }

  // Refreshes the packed linear weights.
  void Pack(const ExecContext& ctx);

  // A parameter, empty for index -1.
  ConstTensor view(int parameter) const;
  // A linear weight with its packed form; `bias` may be -1. CHECKs that `parameter` is packed.
  LinearWeight linear(int parameter, int bias = -1) const;
  LinearWeight head() const { return linear(parameters_.layout().head()); }

 private:
  ModelConfig config_;
  ParameterBuffer parameters_;
  OwnedTensor rope_table_;
  Buffer packed_;
  std::vector<Tensor> packed_views_;  // by parameter index; empty where nothing is packed
};

}  // namespace halfstep
