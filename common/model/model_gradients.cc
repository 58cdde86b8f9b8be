// SPDX-License-Identifier: Apache-2.0
// FP32 gradients and the second chain of a tied embedding.
#include <utility>

#include "common/model/transformer.h"
#include "kernels/ops/elementwise.h"

namespace halfstep {

ModelGradients::ModelGradients(std::shared_ptr<const ParameterLayout> layout, Device device)
    : buffer_(std::move(layout), DType::kFloat32, "gradients", device) {
  const ParameterLayout& parameters = buffer_.layout();
  if (parameters.tied()) {
    tied_embedding_ = OwnedTensor("tied_embedding_gradient", DType::kFloat32,
                                  parameters.specs()[parameters.embedding()].shape, device);
  }
}

size_t ModelGradients::Bytes(const ParameterLayout& layout) {
  const int64_t tied = layout.tied() ? layout.specs()[layout.embedding()].shape.elements() : 0;
  return static_cast<size_t>(layout.buffer_elements() + tied) * sizeof(float);
}

void ModelGradients::SetZero(const ExecContext& ctx) {
  FillZero(ctx, buffer_.flat());
  if (buffer_.layout().tied()) FillZero(ctx, tied_embedding_);
}

Tensor ModelGradients::head() { return buffer_.view(buffer_.layout().head()); }

Tensor ModelGradients::embedding() {
  return buffer_.layout().tied() ? tied_embedding_.view()
                                 : buffer_.view(buffer_.layout().embedding());
}

ParameterBuffer& ModelGradients::Finish(const ExecContext& ctx) {
  if (buffer_.layout().tied()) Accumulate(ctx, tied_embedding_, head());
  return buffer_;
}

}  // namespace halfstep
