// SPDX-License-Identifier: Apache-2.0
// Weights with the packed form of every linear layer beside the plain one.
#include "common/model/model_weights.h"

#include <utility>

#include "kernels/check.h"
#include "kernels/ops/rope.h"
#include "kernels/stream.h"

namespace halfstep {
namespace {

constexpr size_t kPackAlignment = 64;

// Matrices that linear layers multiply by: all but an embedding that is not also the head.
bool IsLinear(const ParameterLayout& layout, int parameter) {
  return layout.specs()[parameter].shape.rank() == 2 &&
         (parameter != layout.embedding() || layout.tied());
}

// Of a parameter's packed form; 0 where nothing is packed.
size_t PackedBytes(const ParameterLayout& layout, int parameter, DType dtype, Device device) {
  if (!IsLinear(layout, parameter)) return 0;
  const Shape& shape = layout.specs()[parameter].shape;
  const size_t bytes = PackedLinearBytes(device, dtype, shape[0], shape[1]);
  return (bytes + kPackAlignment - 1) / kPackAlignment * kPackAlignment;
}

}  // namespace

size_t ModelWeights::Bytes(const ModelConfig& config, const ParameterLayout& layout, DType dtype,
                           int64_t rope_positions, Device device) {
  size_t bytes = static_cast<size_t>(layout.buffer_elements()) * SizeOf(dtype) +
                 static_cast<size_t>(rope_positions * config.head_dim) * sizeof(float);
  for (size_t i = 0; i < layout.specs().size(); ++i) {
    bytes += PackedBytes(layout, static_cast<int>(i), dtype, device);
  }
  return bytes;
}

ModelWeights::ModelWeights(const ModelConfig& config, std::shared_ptr<const ParameterLayout> layout,
                           DType dtype, int64_t rope_positions, Device device)
    : config_(config),
      parameters_(std::move(layout), dtype, "weights", device),
      rope_table_("rope_table", DType::kFloat32, {rope_positions, 2, config.head_dim / 2}, device) {
  OwnedTensor host_table("rope_table", DType::kFloat32, rope_table_.view().shape());
  FillRopeTable(config_.rope, host_table);
  CopyAndWait(host_table, rope_table_);

  const auto& specs = parameters_.layout().specs();
  std::vector<size_t> offsets(specs.size());
  std::vector<size_t> sizes(specs.size());
  size_t total = 0;
  for (size_t i = 0; i < specs.size(); ++i) {
    offsets[i] = total;
    sizes[i] = PackedBytes(parameters_.layout(), static_cast<int>(i), dtype, device);
    total += sizes[i];
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
