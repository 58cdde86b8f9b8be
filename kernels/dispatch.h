// SPDX-License-Identifier: Apache-2.0
// The one place where an operation goes to a backend: functions of the operation's own signature in
// namespaces halfstep::cpu and halfstep::cuda.
#pragma once

#include "kernels/check.h"
#include "kernels/cpu/cpu_target.h"
#include "kernels/cuda/backend.h"
#include "kernels/exec_context.h"

// HALFSTEP_DISPATCH(ctx, RmsNorm, x, weight, ...) returns cpu::RmsNorm(ctx, x, weight, ...), or
// cuda::RmsNorm where the build has it. It is the last statement of a function.
#define HALFSTEP_DISPATCH(ctx, op, ...)              \
  switch ((ctx).device.type) {                       \
    case ::halfstep::DeviceType::kCpu:               \
      ::halfstep::RequireSupportedCpu();             \
      return ::halfstep::cpu::op(ctx, __VA_ARGS__);  \
    case ::halfstep::DeviceType::kCuda:              \
      if (::halfstep::cuda::op == nullptr) break;    \
      return ::halfstep::cuda::op(ctx, __VA_ARGS__); \
  }                                                  \
  ::halfstep::CheckFailed(#op, "this build has no CUDA backend", __FILE__, __LINE__)
