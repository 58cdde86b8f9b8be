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

size_t TrainActivations::Bytes(const ModelConfig& config, const ActivationDTypes& dtypes,
                               int64_t tokens, int64_t logit_rows, Recompute recompute) {
  Impl impl;
  impl.recompute = recompute;
  return impl.Bytes(config, dtypes, tokens, logit_rows);
}

template <class Take>
void TrainActivations::Impl::Carve(const ModelConfig& config, const ActivationDTypes& dtypes,
                                   int64_t tokens, int64_t rows, Take&& take) {
  inputs.clear();
  layers.clear();
  for (int64_t i = 0; i < config.layers; ++i) {
    inputs.push_back(take(dtypes.residual, Shape{tokens, config.hidden_size}));
    if (recompute == Recompute::kLayer) continue;
    layers.push_back(
        TakeLayerActivations(config, dtypes, tokens, OutputRows(config, i, tokens, rows), take));
  }
  final_input = take(dtypes.residual, Shape{rows, config.hidden_size});
  final_rstd = take(DType::kFloat32, Shape{rows});
}

size_t TrainActivations::Impl::Bytes(const ModelConfig& config, const ActivationDTypes& dtypes,
                                     int64_t tokens, int64_t rows) {
  size_t bytes = 0;
  Carve(config, dtypes, tokens, rows, [&](DType type, const Shape& shape) {
    bytes += AlignedBytes(type, shape);
    return Tensor(nullptr, type, shape);
  });
  return bytes;
}

void TrainActivations::Impl::Reserve(const ModelConfig& config, const ActivationDTypes& dtypes,
                                     const PackedBatch& batch, Recompute mode, Device device) {
  recompute = mode;
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  const auto rows = static_cast<int64_t>(batch.logit_rows.size());
  const size_t needed = Bytes(config, dtypes, tokens, rows);
  if (needed > arena_.bytes() || arena_.device() != device) {
    arena_ = Buffer();  // give back first, so that old and new never exist together
    arena_ = Buffer("activations", needed, device);
  }
  size_t used = 0;
  Carve(config, dtypes, tokens, rows, [&](DType type, const Shape& shape) {
    const Tensor view = arena_.View(type, shape, used);
    used += AlignedBytes(type, shape);
    return view;
  });
}

}  // namespace halfstep
