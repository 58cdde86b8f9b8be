// SPDX-License-Identifier: Apache-2.0
// Views into one flat array over a layout.
#include "common/model/parameter_buffer.h"

#include <utility>

namespace halfstep {

ParameterBuffer::ParameterBuffer(std::shared_ptr<const ParameterLayout> layout, DType dtype,
                                 std::string name, Device device)
    : layout_(std::move(layout)),
      dtype_(dtype),
      buffer_(std::move(name), static_cast<size_t>(layout_->buffer_elements()) * SizeOf(dtype),
              device) {}

Tensor ParameterBuffer::view(int parameter) {
  const ParameterSpec& spec = layout_->specs()[parameter];
  return buffer_.View(dtype_, spec.shape, static_cast<size_t>(spec.offset) * SizeOf(dtype_));
}

ConstTensor ParameterBuffer::view(int parameter) const {
  const ParameterSpec& spec = layout_->specs()[parameter];
  return buffer_.View(dtype_, spec.shape, static_cast<size_t>(spec.offset) * SizeOf(dtype_));
}

Tensor ParameterBuffer::flat() { return buffer_.View(dtype_, {layout_->buffer_elements()}); }

ConstTensor ParameterBuffer::flat() const {
  return buffer_.View(dtype_, {layout_->buffer_elements()});
}

}  // namespace halfstep
