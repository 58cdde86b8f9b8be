// SPDX-License-Identifier: Apache-2.0
// What the operation tests share: random tensors rounded to a dtype beside their FP64 values,
// contexts with any number of threads, comparison with coordinates, and finite differences.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "kernels/buffer.h"
#include "kernels/cpu/cpu_target.h"
#include "kernels/dtype.h"
#include "kernels/exec_context.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"
#include "kernels/thread_pool.h"
#include "kernels/workspace.h"
#include "tests/kernels/tolerance.h"
#include "tests/testing/test_device.h"

namespace halfstep::test {

inline const std::vector<DType> kRealDTypes = {DType::kFloat16, DType::kBFloat16, DType::kFloat32};

inline double LoadDouble(ConstTensor x, int64_t i) {
  switch (x.dtype()) {
    case DType::kFloat16:
      return ToFloat(x.as<Float16>()[i]);
    case DType::kBFloat16:
      return ToFloat(x.as<BFloat16>()[i]);
    case DType::kFloat32:
      return x.as<float>()[i];
    case DType::kFloat64:
      return x.as<double>()[i];
    case DType::kInt32:
      return x.as<int32_t>()[i];
    default:
      return std::nan("");
  }
}

inline void StoreDouble(Tensor x, int64_t i, double value) {
  switch (x.dtype()) {
    case DType::kFloat16:
      x.as<Float16>()[i] = ToFloat16(static_cast<float>(value));
      break;
    case DType::kBFloat16:
      x.as<BFloat16>()[i] = ToBFloat16(static_cast<float>(value));
      break;
    case DType::kFloat32:
      x.as<float>()[i] = static_cast<float>(value);
      break;
    case DType::kFloat64:
      x.as<double>()[i] = value;
      break;
    case DType::kInt32:
      x.as<int32_t>()[i] = static_cast<int32_t>(value);
      break;
    default:
      HALFSTEP_CHECK(false);
  }
}

inline OwnedTensor Zeros(DType dtype, Shape shape) {
  return OwnedTensor("test", dtype, shape, kTestDevice);
}

// The values of x in another dtype, rounded to nearest even.
inline OwnedTensor As(DType dtype, ConstTensor x) {
  OwnedTensor y = Zeros(dtype, x.shape());
  for (int64_t i = 0; i < x.elements(); ++i) StoreDouble(y, i, LoadDouble(x, i));
  return y;
}
inline OwnedTensor AsDouble(ConstTensor x) { return As(DType::kFloat64, x); }

inline OwnedTensor Ints(const std::vector<int32_t>& values) {
  OwnedTensor x = Zeros(DType::kInt32, {static_cast<int64_t>(values.size())});
  std::copy(values.begin(), values.end(), x.view().as<int32_t>());
  return x;
}

// Reproducible inputs; one per test, so that a test's numbers do not depend on the others.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  OwnedTensor Normal(DType dtype, Shape shape, double deviation = 1, double mean = 0) {
    OwnedTensor x = Zeros(dtype, shape);
    std::normal_distribution<double> normal(mean, deviation);
    for (int64_t i = 0; i < shape.elements(); ++i) StoreDouble(x, i, normal(engine_));
    return x;
  }
  // Uniform in [0, below).
  OwnedTensor Ids(int64_t count, int32_t below) {
    OwnedTensor x = Zeros(DType::kInt32, {count});
    for (int64_t i = 0; i < count; ++i) x.view().as<int32_t>()[i] = Below(below);
    return x;
  }
  int32_t Below(int32_t bound) {
    return std::uniform_int_distribution<int32_t>(0, bound - 1)(engine_);
  }
  std::mt19937_64& engine() { return engine_; }

 private:
  std::mt19937_64 engine_;
};

// An ExecContext that owns its workspace, threads and saturation counter.
class TestContext {
 public:
  explicit TestContext(int threads = 1, Profile profile = Profile::kBitwise) {
    if (threads > 1) pool_ = std::make_unique<ThreadPool>(threads);
    if (kEmulated) stream_ = std::make_unique<Stream>(kTestDevice);
    context_.device = kTestDevice;
    context_.stream = stream_.get();
    context_.profile = profile;
    context_.workspace = &workspace_;
    context_.threads = pool_.get();
    context_.saturated_stores = &saturated_;
  }
  operator const ExecContext&() const { return context_; }  // NOLINT(google-explicit-constructor)
  int64_t saturated() const {
    if (stream_ != nullptr) saturated_ += stream_->TakeSaturatedStores();
    return saturated_;
  }

 private:
  Workspace workspace_{kTestDevice};
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Stream> stream_;
  mutable std::atomic<int64_t> saturated_{0};
  ExecContext context_;
};

inline std::string Coordinates(const Shape& shape, int64_t i) {
  std::array<int64_t, Shape::kMaxRank> at{};
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    at[axis] = i % shape[axis];
    i /= shape[axis];
  }
  std::ostringstream text;
  for (int axis = 0; axis < shape.rank(); ++axis) text << (axis ? ", " : "[") << at[axis];
  text << ']';
  return text.str();
}

inline double RelativeL2(ConstTensor got, ConstTensor want) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < want.elements(); ++i) {
    const double d = LoadDouble(got, i) - LoadDouble(want, i);
    difference += d * d;
    norm += LoadDouble(want, i) * LoadDouble(want, i);
  }
  if (std::isnan(difference)) return difference;
  if (norm == 0) return difference == 0 ? 0 : HUGE_VAL;
  return std::sqrt(difference / norm);
}

enum class Distance { kRelativeL2, kAbsolute };

// Success when `got` lies within `tolerance` of `want`; else the worst element and the case.
inline ::testing::AssertionResult Close(ConstTensor got, ConstTensor want, double tolerance,
                                        const std::string& name,
                                        Distance distance = Distance::kRelativeL2) {
  if (got.shape() != want.shape()) {
    return ::testing::AssertionFailure()
           << name << ": shape " << got.shape() << ", want " << want.shape();
  }
  int64_t worst = 0;
  double largest = 0;
  for (int64_t i = 0; i < want.elements(); ++i) {
    const double d = std::abs(LoadDouble(got, i) - LoadDouble(want, i));
    if (!(d <= largest)) {
      largest = d;
      worst = i;
      if (std::isnan(d)) break;
    }
  }
  const double error = distance == Distance::kAbsolute ? largest : RelativeL2(got, want);
  if (error <= tolerance) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << name << ": error " << error << " above " << tolerance << "; worst at "
         << Coordinates(want.shape(), worst) << " of " << want.shape() << ": got "
         << LoadDouble(got, worst) << ", want " << LoadDouble(want, worst);
}

// Success when both hold the same bytes; else the first element that differs and the case.
inline ::testing::AssertionResult SameBits(ConstTensor got, ConstTensor want,
                                           const std::string& name) {
  if (got.shape() != want.shape() || got.dtype() != want.dtype()) {
    return ::testing::AssertionFailure()
           << name << ": shape " << got.shape() << ", want " << want.shape();
  }
  if (want.bytes() == 0) return ::testing::AssertionSuccess();
  const auto* a = static_cast<const char*>(got.data());
  const auto* b = static_cast<const char*>(want.data());
  if (std::memcmp(a, b, want.bytes()) == 0) return ::testing::AssertionSuccess();
  const int64_t size = static_cast<int64_t>(SizeOf(want.dtype()));
  int64_t i = 0;
  while (std::memcmp(a + i * size, b + i * size, static_cast<size_t>(size)) == 0) ++i;
  return ::testing::AssertionFailure()
         << name << ": bits differ first at " << Coordinates(want.shape(), i) << " of "
         << want.shape() << ": got " << LoadDouble(got, i) << ", want " << LoadDouble(want, i);
}

// Compares `gradient` (fp64, of the scalar `loss` with respect to the fp64 tensor `x`) with central
// differences. Every element is moved, so keep x small.
inline ::testing::AssertionResult MatchesFiniteDifference(const std::function<double()>& loss,
                                                          Tensor x, ConstTensor gradient,
                                                          const std::string& name) {
  constexpr double kStep = 1e-5;
  OwnedTensor numeric = Zeros(DType::kFloat64, x.shape());
  for (int64_t i = 0; i < x.elements(); ++i) {
    double& element = x.as<double>()[i];
    const double saved = element;
    element = saved + kStep;
    const double above = loss();
    element = saved - kStep;
    const double below = loss();
    element = saved;
    numeric.view().as<double>()[i] = (above - below) / (2 * kStep);
  }
  return Close(gradient, numeric, tolerance::kFiniteDifference, name + " by finite differences");
}

// Runs the operations on one CPU target for as long as it lives.
class ScopedCpuTarget {
 public:
  explicit ScopedCpuTarget(const std::string& name) { SetCpuTargetForTest(name); }
  ~ScopedCpuTarget() { SetCpuTargetForTest(""); }
  ScopedCpuTarget(const ScopedCpuTarget&) = delete;
  ScopedCpuTarget& operator=(const ScopedCpuTarget&) = delete;
};

// What a test suite over the targets of the CPU is to run on: all of them, or once under emulation,
// which does not depend on them.
inline std::vector<std::string> MachinesUnderTest() {
  return kEmulated ? std::vector<std::string>{CpuTargets().front()} : CpuTargets();
}

// Calls run(context) with 1, 2 and 3 threads on every CPU target and expects the bits of the first
// call from all of them; emulated, each call has another order of threads. Use shapes above the
// grain of the operation, or there is nothing to divide.
inline void ExpectSameBitsOnEveryMachine(
    const std::string& name,
    const std::function<std::vector<OwnedTensor>(const ExecContext&)>& run) {
  std::vector<OwnedTensor> first;
  for (const std::string& target : CpuTargets()) {
    const ScopedCpuTarget scoped(target);
    for (const int threads : {1, 2, 3}) {
      const TestContext context(threads);
      std::vector<OwnedTensor> outputs = run(context);
      if (first.empty()) {
        first = std::move(outputs);
        continue;
      }
      ASSERT_EQ(outputs.size(), first.size());
      for (size_t i = 0; i < first.size(); ++i) {
        EXPECT_TRUE(SameBits(outputs[i], first[i],
                             name + " output " + std::to_string(i) + " on " + target + " with " +
                                 std::to_string(threads) + " threads"));
      }
    }
  }
}

// sum_i a[i] b[i]: a scalar whose gradient with respect to a is b.
inline double Inner(ConstTensor a, ConstTensor b) {
  double sum = 0;
  for (int64_t i = 0; i < a.elements(); ++i) sum += LoadDouble(a, i) * LoadDouble(b, i);
  return sum;
}

}  // namespace halfstep::test
