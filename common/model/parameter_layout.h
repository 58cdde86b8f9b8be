// SPDX-License-Identifier: Apache-2.0
// ParameterLayout: the only list of a model's parameters. Weights, FP32 master, gradients and Adam
// moments are buffers over one layout; optimizer, norm, checkpoint and weight transport iterate it
// and know no model.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/model/model_config.h"
#include "kernels/tensor.h"

namespace halfstep {

// Rows [first_row, first_row + rows) of a parameter, stored under `name` in Hugging Face
// checkpoints.
struct HuggingFaceSlice {
  std::string name;
  int64_t first_row = 0;
  int64_t rows = 0;
};

struct ParameterSpec {
  std::string name;                      // "layers.3.attention.qkv"
  Shape shape;                           // one or two dimensions
  int64_t offset = 0;                    // elements from the start of a buffer; a multiple of 64
  bool weight_decay = false;             // matrices, not norms and biases
  std::vector<HuggingFaceSlice> slices;  // cover all rows in order
};

// Indices into specs(); -1 where the model has no such parameter. Fused matrices keep their parts
// in consecutive rows: qkv = [q; k; v], gate_up = [gate; up].
struct LayerParameters {
  int attention_norm = -1;
  int qkv = -1;
  int qkv_bias = -1;
  int q_norm = -1;
  int k_norm = -1;
  int attention_out = -1;
  int attention_out_bias = -1;
  int mlp_norm = -1;
  int gate_up = -1;
  int gate_up_bias = -1;
  int down = -1;
  int down_bias = -1;
};

// Immutable; share by shared_ptr<const>.
class ParameterLayout {
 public:
  explicit ParameterLayout(const ModelConfig& config);

  const std::vector<ParameterSpec>& specs() const { return specs_; }
  const std::vector<LayerParameters>& layers() const { return layers_; }
  int embedding() const { return embedding_; }
  int final_norm() const { return final_norm_; }
  // The embedding when word embeddings are tied.
  int head() const { return head_; }
  bool tied() const { return head_ == embedding_; }

  // Elements of a buffer, padding included, and of the parameters alone.
  int64_t buffer_elements() const { return buffer_elements_; }
  int64_t parameter_count() const { return parameter_count_; }

 private:
  int Add(std::string name, Shape shape, bool weight_decay, std::vector<HuggingFaceSlice> slices);

  std::vector<ParameterSpec> specs_;
  std::vector<LayerParameters> layers_;
  int embedding_ = -1;
  int final_norm_ = -1;
  int head_ = -1;
  int64_t buffer_elements_ = 0;
  int64_t parameter_count_ = 0;
};

}  // namespace halfstep
