// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/buffer.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace halfstep {

// The values of a tensor where the host can read them: the tensor itself, or a copy of what a
// device holds once it has done all that it was given (CopyAndWait).
class HostCopy {
 public:
  explicit HostCopy(ConstTensor tensor) : view_(tensor) {
    if (tensor.device() == kCpuDevice) return;
    copy_ = OwnedTensor("host_copy", tensor.dtype(), tensor.shape());
    CopyAndWait(tensor, copy_);
    view_ = copy_;
  }
  ConstTensor view() const { return view_; }

 private:
  OwnedTensor copy_;
  ConstTensor view_;
};

}  // namespace halfstep
