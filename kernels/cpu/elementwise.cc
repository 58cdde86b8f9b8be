// SPDX-License-Identifier: Apache-2.0
// Sums, casts and copies.
#include "kernels/cpu/elementwise.h"

#include <algorithm>

#include "kernels/cpu/parallel.h"
#include "kernels/dispatch_float.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {
namespace {

constexpr int64_t kGrainElements = 32768;

// visit(begin, end, thread) over `elements`, each range but the last a whole number of vectors.
template <class Visit>
void ForElements(const ExecContext& ctx, int64_t elements, const Visit& visit) {
  constexpr int64_t kLanes = static_cast<int64_t>(kVirtualLanes);
  ParallelRanges(ctx, (elements + kLanes - 1) / kLanes, kGrainElements / kLanes,
                 [&](int64_t begin, int64_t end, int) {
                   visit(begin * kLanes, std::min(end * kLanes, elements));
                 });
}

// Stores function(i, count), the vector of elements [i, i + count), for every i.
template <class T, class Function>
void StoreElements(const ExecContext& ctx, Overflow overflow, Tensor y, const Function& function) {
  T* to = y.as<T>();
  ForElements(ctx, y.elements(), [&](int64_t begin, int64_t end) {
    size_t saturated = 0;
    for (int64_t i = begin; i < end; i += static_cast<int64_t>(kVirtualLanes)) {
      const size_t count = std::min(static_cast<size_t>(end - i), kVirtualLanes);
      if (overflow == Overflow::kSaturate) {
        saturated += StoreSaturated16(function(i, count), to + i, count);
      } else {
        Store16(function(i, count), to + i, count);
      }
    }
    CountSaturated(ctx, static_cast<int64_t>(saturated));
  });
}

void AddImpl(const ExecContext& ctx, ConstTensor a, ConstTensor b, Overflow overflow, Tensor y) {
  DispatchFloat(y.dtype(), [&]<class T>() {
    const T* left = a.as<T>();
    const T* right = b.as<T>();
    StoreElements<T>(ctx, overflow, y, [=](int64_t i, size_t count) HWY_ATTR {
      return Load16(left + i, count) + Load16(right + i, count);
    });
  });
}

void AccumulateImpl(const ExecContext& ctx, ConstTensor x, Tensor y) {
  const float* from = x.as<float>();
  const float* sum = y.as<float>();
  StoreElements<float>(ctx, Overflow::kInfinity, y, [=](int64_t i, size_t count) HWY_ATTR {
    return Load16(sum + i, count) + Load16(from + i, count);
  });
}

void CastImpl(const ExecContext& ctx, ConstTensor x, Overflow overflow, Tensor y) {
  DispatchFloat(x.dtype(), [&]<class From>() {
    const From* from = x.as<From>();
    DispatchFloat(y.dtype(), [&]<class To>() {
      StoreElements<To>(ctx, overflow, y,
                        [=](int64_t i, size_t count) HWY_ATTR { return Load16(from + i, count); });
    });
  });
}

}  // namespace
}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfstep::cpu {

HWY_EXPORT(AddImpl);
void Add(const ExecContext& ctx, ConstTensor a, ConstTensor b, Overflow overflow, Tensor y) {
  HWY_DYNAMIC_DISPATCH(AddImpl)(ctx, a, b, overflow, y);
}

HWY_EXPORT(AccumulateImpl);
void Accumulate(const ExecContext& ctx, ConstTensor x, Tensor y) {
  HWY_DYNAMIC_DISPATCH(AccumulateImpl)(ctx, x, y);
}

HWY_EXPORT(CastImpl);
void Cast(const ExecContext& ctx, ConstTensor x, Overflow overflow, Tensor y) {
  HWY_DYNAMIC_DISPATCH(CastImpl)(ctx, x, overflow, y);
}

}  // namespace halfstep::cpu
#endif
