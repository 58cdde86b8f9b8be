// SPDX-License-Identifier: Apache-2.0
// Normal deviates by the inverse of the normal distribution (P. J. Acklam's rational approximation,
// relative error below 1.2e-9) applied to Philox words. Only additions, multiplications, divisions
// and square roots, so the bits do not depend on a mathematics library.
#include "common/model/initialize.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/philox.h"
#include "kernels/stream.h"

namespace halfstep {
namespace {

// Keeps these words apart from those of other users of the same seed.
constexpr uint32_t kInitializationStream = 0x494e4954;

// Natural logarithm of x > 0: 2 atanh((m - 1) / (m + 1)) + e log 2 with m in [sqrt(1/2), sqrt(2)).
double Log(double x) {
  int exponent = 0;
  double mantissa = std::frexp(x, &exponent);
  if (mantissa < 0.70710678118654752) {
    mantissa *= 2;
    --exponent;
  }
  const double z = (mantissa - 1) / (mantissa + 1);
  const double square = z * z;
  double sum = 0;
  for (int k = 25; k >= 1; k -= 2) sum = sum * square + 1.0 / k;
  return 2 * z * sum + exponent * 0.69314718055994531;
}

double NormalFromUniform(double p) {
  constexpr double a[] = {-3.969683028665376e+01, 2.209460984245205e+02,  -2.759285104469687e+02,
                          1.383577518672690e+02,  -3.066479806614716e+01, 2.506628277459239e+00};
  constexpr double b[] = {-5.447609879822406e+01, 1.615858368580409e+02, -1.556989798598866e+02,
                          6.680131188771972e+01, -1.328068155288572e+01};
  constexpr double c[] = {-7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838e+00,
                          -2.549732539343734e+00, 4.374664141464968e+00,  2.938163982698783e+00};
  constexpr double d[] = {7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e+00,
                          3.754408661907416e+00};
  constexpr double kTail = 0.02425;
  const double tail = std::min(p, 1 - p);
  if (tail < kTail) {
    const double q = std::sqrt(-2 * Log(tail));
    const double x = (((((c[0] * q + c[1]) * q + c[2]) * q + c[3]) * q + c[4]) * q + c[5]) /
                     ((((d[0] * q + d[1]) * q + d[2]) * q + d[3]) * q + 1);
    return p < 0.5 ? x : -x;
  }
  const double q = p - 0.5;
  const double r = q * q;
  return (((((a[0] * r + a[1]) * r + a[2]) * r + a[3]) * r + a[4]) * r + a[5]) * q /
         (((((b[0] * r + b[1]) * r + b[2]) * r + b[3]) * r + b[4]) * r + 1);
}

void FillNormal(uint64_t seed, uint32_t parameter, double deviation, Tensor out) {
  const PhiloxKey key = {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}};
  float* values = out.as<float>();
  for (int64_t i = 0; i < out.elements(); i += 4) {
    const auto words = Philox4x32({{static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32),
                                    parameter, kInitializationStream}},
                                  key);
    for (int64_t j = i; j < std::min(i + 4, out.elements()); ++j) {
      const double p = (static_cast<double>(words[j - i]) + 0.5) * 0x1p-32;
      values[j] = static_cast<float>(deviation * NormalFromUniform(p));
    }
  }
}

}  // namespace

void InitializeParameters(const ModelConfig& config, uint64_t seed, ParameterBuffer* parameters) {
  HALFSTEP_CHECK(parameters->dtype() == DType::kFloat32);
  const ParameterLayout& layout = parameters->layout();
  const Device device = parameters->flat().device();
  if (device != kCpuDevice) {
    ParameterBuffer host(parameters->shared_layout(), DType::kFloat32, "initial weights");
    InitializeParameters(config, seed, &host);
    CopyAndWait(host.flat(), parameters->flat());
    return;
  }
  const auto fill = [&](int parameter, float value) {
    if (parameter < 0) return;
    const Tensor view = parameters->view(parameter);
    std::fill_n(view.as<float>(), view.elements(), value);
  };
  for (size_t i = 0; i < layout.specs().size(); ++i) {
    const int parameter = static_cast<int>(i);
    if (layout.specs()[i].shape.rank() == 1) {
      fill(parameter, 0.0f);
    } else {
      FillNormal(seed, static_cast<uint32_t>(i), config.initializer_range,
                 parameters->view(parameter));
    }
  }
  fill(layout.final_norm(), 1.0f);
  for (const LayerParameters& layer : layout.layers()) {
    for (const int norm : {layer.attention_norm, layer.mlp_norm, layer.q_norm, layer.k_norm}) {
      fill(norm, 1.0f);
    }
  }
}

}  // namespace halfstep
