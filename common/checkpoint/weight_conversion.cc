// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/weight_conversion.h"

#include <cmath>

#include "kernels/check.h"

namespace halfstep {
namespace {

template <class From, class To>
ConversionCounts Convert(const void* from, int64_t count, void* to) {
  const auto* source = static_cast<const From*>(from);
  auto* target = static_cast<To*>(to);
  ConversionCounts counts;
  for (int64_t i = 0; i < count; ++i) {
    const float value = ToFloat(source[i]);
    const bool finite = std::isfinite(value);
    counts.non_finite += !finite;
    if constexpr (__is_same(To, Float16)) {
      counts.out_of_range += finite && std::fabs(value) > kFloat16Max;
    }
    target[i] = FromFloat<To>(value);
  }
  return counts;
}

template <class From>
ConversionCounts ConvertFrom(const void* from, int64_t count, DType to_dtype, void* to) {
  switch (to_dtype) {
    case DType::kFloat16:
      return Convert<From, Float16>(from, count, to);
    case DType::kBFloat16:
      return Convert<From, BFloat16>(from, count, to);
    default:
      HALFSTEP_CHECK(to_dtype == DType::kFloat32);
      return Convert<From, float>(from, count, to);
  }
}

}  // namespace

ConversionCounts ConvertWeights(const void* from, DType from_dtype, int64_t count, DType to_dtype,
                                void* to) {
  switch (from_dtype) {
    case DType::kFloat16:
      return ConvertFrom<Float16>(from, count, to_dtype, to);
    case DType::kBFloat16:
      return ConvertFrom<BFloat16>(from, count, to_dtype, to);
    default:
      HALFSTEP_CHECK(from_dtype == DType::kFloat32);
      return ConvertFrom<float>(from, count, to_dtype, to);
  }
}

}  // namespace halfstep
