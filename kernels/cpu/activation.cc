// SPDX-License-Identifier: Apache-2.0
// SwiGLU, one vector of columns at a time.
#include "kernels/cpu/activation.h"

#include <algorithm>

#include "kernels/cpu/parallel.h"
#include "kernels/dispatch_float.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/activation.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {
namespace {

constexpr int64_t kGrainElements = 4096;

HWY_INLINE F32x16 Sigmoid(const F32x16& x) { return Set16(1.0f) / (Set16(1.0f) + Exp(Neg(x))); }

// silu(gate) * up. The division, not a product with Sigmoid: one rounding less.
HWY_INLINE F32x16 Gated(const F32x16& gate, const F32x16& up) {
  return gate / (Set16(1.0f) + Exp(Neg(gate))) * up;
}

struct Gradient {
  F32x16 gate;
  F32x16 up;
};
HWY_INLINE Gradient GatedBackward(const F32x16& dy, const F32x16& gate, const F32x16& up) {
  const F32x16 one = Set16(1.0f);
  const F32x16 sigmoid = Sigmoid(gate);
  const F32x16 slope = sigmoid * MulAdd(gate, one - sigmoid, one);
  return {dy * up * slope, dy * (gate * sigmoid)};
}

template <class X, class T>
void SwiGluOf(const ExecContext& ctx, const X* in, Tensor y) {
  const int64_t width = y.dim(1);
  T* out = y.as<T>();
  const int64_t grain = kGrainElements / std::max<int64_t>(width, 1);
  ParallelRanges(ctx, y.dim(0), grain, [=, &ctx](int64_t begin, int64_t end, int) {
    size_t saturated = 0;
    const size_t n = static_cast<size_t>(width);
    for (int64_t t = begin; t < end; ++t) {
      const X* gate = in + 2 * t * width;
      const X* up = gate + width;
      T* to = out + t * width;
      for (size_t i = 0; i < n; i += kVirtualLanes) {
        const size_t rest = std::min(n - i, kVirtualLanes);
        saturated +=
            StoreSaturated16(Gated(Load16(gate + i, rest), Load16(up + i, rest)), to + i, rest);
      }
    }
    CountSaturated(ctx, static_cast<int64_t>(saturated));
  });
}

void SwiGluImpl(const ExecContext& ctx, ConstTensor gate_up, Tensor y) {
  DispatchFloat(y.dtype(), [&]<class T>() {
    if (gate_up.dtype() == DType::kFloat32) {
      SwiGluOf<float, T>(ctx, gate_up.as<float>(), y);
    } else {
      SwiGluOf<T, T>(ctx, gate_up.as<T>(), y);
    }
  });
}

void SwiGluBackwardImpl(const ExecContext& ctx, ConstTensor dy, ConstTensor gate_up,
                        Tensor dgate_up) {
  const int64_t width = dy.dim(1);
  DispatchFloat(dy.dtype(), [&]<class T>() {
    const T* dout = dy.as<T>();
    const T* in = gate_up.as<T>();
    T* din = dgate_up.as<T>();
    const int64_t grain = kGrainElements / std::max<int64_t>(width, 1);
    ParallelRanges(ctx, dy.dim(0), grain, [=](int64_t begin, int64_t end, int) {
      const size_t n = static_cast<size_t>(width);
      for (int64_t t = begin; t < end; ++t) {
        const T* gate = in + 2 * t * width;
        T* to = din + 2 * t * width;
        for (size_t i = 0; i < n; i += kVirtualLanes) {
          const size_t rest = std::min(n - i, kVirtualLanes);
          const Gradient gradient =
              GatedBackward(Load16(dout + t * width + i, rest), Load16(gate + i, rest),
                            Load16(gate + n + i, rest));
          Store16(gradient.gate, to + i, rest);
          Store16(gradient.up, to + n + i, rest);
        }
      }
    });
  });
}

}  // namespace
}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfstep::cpu {

HWY_EXPORT(SwiGluImpl);
void SwiGlu(const ExecContext& ctx, ConstTensor gate_up, Tensor y) {
  HWY_DYNAMIC_DISPATCH(SwiGluImpl)(ctx, gate_up, y);
}

HWY_EXPORT(SwiGluBackwardImpl);
void SwiGluBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor gate_up, Tensor dgate_up) {
  HWY_DYNAMIC_DISPATCH(SwiGluBackwardImpl)(ctx, dy, gate_up, dgate_up);
}

}  // namespace halfstep::cpu
#endif
