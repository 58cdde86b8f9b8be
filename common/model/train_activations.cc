// SPDX-License-Identifier: Apache-2.0
// The arena behind TrainActivations.
#include "common/model/train_activations.h"

#include <memory>

namespace halfstep {
namespace {

constexpr size_t kAlignment = 64;

size_t AlignedBytes(DType dtype, const Shape& shape) {
  const size_t bytes = static_cast<size_t>(shape.elements()) * SizeOf(dtype);
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

TrainActivations::TrainActivations() : impl_(std::make_unique<Impl>()) {}
TrainActivations::~TrainActivations() = default;
TrainActivations::TrainActivations(TrainActivations&&) noexcept = default;
TrainActivations& TrainActivations::operator=(TrainActivations&&) noexcept = default;

template <class Take>
void TrainActivations::Impl::Carve(const ModelConfig& config, DType dtype, const PackedBatch& batch,
                                   Take&& take) {
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  const auto rows = static_cast<int64_t>(batch.logit_rows.size());
  inputs.clear();
  layers.clear();
  for (int64_t i = 0; i < config.layers; ++i) {
    inputs.push_back(take(dtype, Shape{tokens, config.hidden_size}));
    if (recompute == Recompute::kLayer) continue;
    layers.push_back(
        TakeLayerActivations(config, dtype, tokens, OutputRows(config, i, tokens, rows), take));
  }
  final_input = take(dtype, Shape{rows, config.hidden_size});
  final_rstd = take(DType::kFloat32, Shape{rows});
}

void TrainActivations::Impl::Reserve(const ModelConfig& config, DType dtype,
                                     const PackedBatch& batch, Recompute mode) {
  recompute = mode;
  size_t needed = 0;
  Carve(config, dtype, batch, [&](DType type, const Shape& shape) {
    needed += AlignedBytes(type, shape);
    return Tensor(nullptr, type, shape);
  });
  if (needed > arena_.bytes()) {
    arena_ = Buffer();  // give back first, so that old and new never exist together
    arena_ = Buffer("activations", needed);
  }
  size_t used = 0;
  Carve(config, dtype, batch, [&](DType type, const Shape& shape) {
    const Tensor view = arena_.View(type, shape, used);
    used += AlignedBytes(type, shape);
    return view;
  });
}

}  // namespace halfstep
