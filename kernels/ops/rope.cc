// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/rope.h"

#include <cmath>
#include <numbers>

#include "kernels/cpu/rope.h"
#include "kernels/dispatch.h"

namespace halfstep {
namespace {

// Long wavelengths are divided by `factor`, short ones kept, those between interpolated.
double ScaleFrequency(double frequency, const Llama3RopeScaling& scaling) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const double original = static_cast<double>(scaling.original_max_positions);
  if (wavelength < original / scaling.high_freq_factor) return frequency;
  if (wavelength > original / scaling.low_freq_factor) return frequency / scaling.factor;
  const double smooth = (original / wavelength - scaling.low_freq_factor) /
                        (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1 - smooth) * frequency / scaling.factor + smooth * frequency;
}

void CheckShapes(ConstTensor x, ConstTensor positions, ConstTensor table, ConstTensor y) {
  HALFSTEP_CHECK_EQ(x.rank(), 3);
  HALFSTEP_CHECK_EQ(x.shape(), y.shape());
  HALFSTEP_CHECK(x.dtype() == y.dtype() && IsFloat(x.dtype()));
  HALFSTEP_CHECK_EQ(positions.shape(), (Shape{x.dim(0)}));
  HALFSTEP_CHECK(positions.dtype() == DType::kInt32);
  HALFSTEP_CHECK_EQ(table.rank(), 3);
  HALFSTEP_CHECK_EQ(table.dim(1), 2);
  HALFSTEP_CHECK_EQ(2 * table.dim(2), x.dim(2));
  HALFSTEP_CHECK(table.dtype() == DType::kFloat32);
}

}  // namespace

void FillRopeTable(const RopeParameters& parameters, Tensor table) {
  HALFSTEP_CHECK(table.device() == kCpuDevice);
  HALFSTEP_CHECK_EQ(table.rank(), 3);
  HALFSTEP_CHECK_EQ(table.dim(1), 2);
  const int64_t half = table.dim(2);
  for (int64_t i = 0; i < half; ++i) {
    double frequency =
        std::pow(parameters.theta, -static_cast<double>(i) / static_cast<double>(half));
    if (parameters.llama3) frequency = ScaleFrequency(frequency, *parameters.llama3);
    for (int64_t position = 0; position < table.dim(0); ++position) {
      float* row = table.as<float>() + position * 2 * half;
      const double angle = static_cast<double>(position) * frequency;
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

void Rope(const ExecContext& ctx, ConstTensor x, ConstTensor positions, ConstTensor table,
          Tensor y) {
  CheckShapes(x, positions, table, y);
  HALFSTEP_DISPATCH(ctx, Rope, x, positions, table, y);
}

void RopeBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor positions, ConstTensor table,
                  Tensor dx) {
  CheckShapes(dy, positions, table, dx);
  HALFSTEP_DISPATCH(ctx, RopeBackward, dy, positions, table, dx);
}

}  // namespace halfstep
