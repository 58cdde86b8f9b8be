// SPDX-License-Identifier: Apache-2.0
// Weights with the packed form of every linear layer beside the plain one.
#include "common/model/model_weights.h"

#include <utility>

#include "kernels/check.h"
#include "kernels/ops/rope.h"

namespace halfstep {
namespace {

constexpr size_t kPackAlignment = 64;

// Matrices that linear layers multiply by: all but an embedding that is not also the head.
bool IsLinear(const ParameterLayout& layout, int parameter) {
  return layout.specs()[parameter].shape.rank() == 2 &&
         (parameter != layout.embedding() || layout.tied());
}

}  // namespace

ModelWeights::ModelWeights(const ModelConfig& config, std::shared_ptr<const ParameterLayout> layout,
                           DType dtype, int64_t rope_positions, Device device)
    : config_(config),
      parameters_(std::move(layout), dtype, "weights", device),
      rope_table_("rope_table", DType::kFloat32, {rope_positions, 2, config.head_dim / 2}, device) {
  FillRopeTable(config_.rope, rope_table_.view());

  const auto& specs = parameters_.layout().specs();
  std::vector<size_t> offsets(specs.size());
  std::vector<size_t> sizes(specs.size());
  size_t total = 0;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (!IsLinear(parameters_.layout(), static_cast<int>(i))) continue;
    offsets[i] = total;
    sizes[i] = PackedLinearBytes(device, dtype, specs[i].shape[0], specs[i].shape[1]);
    total += (sizes[i] + kPackAlignment - 1) / kPackAlignment * kPackAlignment;
  }
  packed_views_.resize(specs.size());
  if (total == 0) return;
  packed_ = Buffer("packed_weights", total, device);
  for (size_t i = 0; i < specs.size(); ++i) {
    if (sizes[i] == 0) continue;
    packed_views_[i] = packed_.View(DType::kUInt8, {static_cast<int64_t>(sizes[i])}, offsets[i]);
  }
}

void ModelWeights::Pack(const ExecContext& ctx) {
  for (size_t i = 0; i < packed_views_.size(); ++i) {
    if (packed_views_[i].empty()) continue;
    PackLinear(ctx, std::as_const(parameters_).view(static_cast<int>(i)), packed_views_[i]);
  }
}

ConstTensor ModelWeights::view(int parameter) const {
  return parameter < 0 ? ConstTensor() : parameters_.view(parameter);
}

LinearWeight ModelWeights::linear(int parameter, int bias) const {
  HALFSTEP_CHECK(IsLinear(parameters_.layout(), parameter));
  return {view(parameter), packed_views_[parameter], view(bias)};
}

}  // namespace halfstep
