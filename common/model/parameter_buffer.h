// SPDX-License-Identifier: Apache-2.0
// One flat array over a ParameterLayout: weights, master weights, gradients or a moment.
#pragma once

#include <memory>
#include <string>

#include "common/model/parameter_layout.h"
#include "kernels/buffer.h"

namespace halfstep {

// Zero at construction; padding between parameters stays zero.
class ParameterBuffer {
 public:
  ParameterBuffer(std::shared_ptr<const ParameterLayout> layout, DType dtype, std::string name,
                  Device device = kCpuDevice);

  const ParameterLayout& layout() const { return *layout_; }
  std::shared_ptr<const ParameterLayout> shared_layout() const { return layout_; }
  DType dtype() const { return dtype_; }

  Tensor view(int parameter);
  ConstTensor view(int parameter) const;
  // The whole array, padding included: [buffer_elements].
  Tensor flat();
  ConstTensor flat() const;

 private:
  std::shared_ptr<const ParameterLayout> layout_;
  DType dtype_;
  Buffer buffer_;
};

}  // namespace halfstep
