// SPDX-License-Identifier: Apache-2.0
// The 16 virtual lanes: conversions over every 16-bit value, exp, log and reductions, the same bits
// on every target that this CPU has.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/kernels/simd_test.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/simd-inl.h"

#ifndef HALFSTEP_SIMD_TEST_CASES_
#define HALFSTEP_SIMD_TEST_CASES_
#include <vector>
namespace halfstep::cpu {
// What one target computed, to be compared with scalar code and with the other targets.
struct SimdResults {
  std::vector<float> from_fp16, from_bf16;
  std::vector<Float16> to_fp16, saturated_fp16;
  std::vector<BFloat16> to_bf16;
  size_t saturated = 0;
  std::vector<float> exp, log;
  std::vector<float> sums, maxima;  // of the first 0..16 inputs
};
struct SimdInputs {
  std::vector<Float16> fp16;
  std::vector<BFloat16> bf16;
  std::vector<float> fp32;  // a multiple of 16
};
}  // namespace halfstep::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

void RunSimd(const SimdInputs& in, SimdResults* out) {
  out->from_fp16.resize(in.fp16.size());
  out->from_bf16.resize(in.bf16.size());
  for (size_t i = 0; i < in.fp16.size(); i += 16) Store16(Load16(&in.fp16[i]), &out->from_fp16[i]);
  for (size_t i = 0; i < in.bf16.size(); i += 16) Store16(Load16(&in.bf16[i]), &out->from_bf16[i]);
  const size_t n = in.fp32.size();
  out->to_fp16.resize(n);
  out->saturated_fp16.resize(n);
  out->to_bf16.resize(n);
  out->exp.resize(n);
  out->log.resize(n);
  for (size_t i = 0; i < n; i += 16) {
    const F32x16 v = Load16(&in.fp32[i]);
    Store16(v, &out->to_fp16[i]);
    Store16(v, &out->to_bf16[i]);
    out->saturated += StoreSaturated16(v, &out->saturated_fp16[i]);
    Store16(Exp(v), &out->exp[i]);
    Store16(Log(v), &out->log[i]);
  }
  for (size_t count = 0; count <= 16; ++count) {
    std::vector<float> values(count);
    for (size_t i = 0; i < count; ++i) values[i] = 1.0f / static_cast<float>(3 * i + 1);
    const F32x16 v = Load16(values.data(), count);
    out->sums.push_back(ReduceSum(v));
    out->maxima.push_back(ReduceMax(v));
    std::vector<Float16> half(count + 1);
    out->saturated += StoreSaturated16(Set16(1e6f), half.data(), count) - count;
    if (half[count].bits != 0) out->saturated = ~size_t{0};  // wrote beyond the end
  }
}

}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_target.h"

namespace halfstep::cpu {
HWY_EXPORT(RunSimd);

namespace {

SimdInputs Inputs() {
  SimdInputs in;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    in.fp16.push_back({static_cast<uint16_t>(bits)});
    in.bf16.push_back({static_cast<uint16_t>(bits)});
  }
  // Every FP16 and BF16 value, its neighbours and the midpoint to the next value with its
  // neighbours.
  const auto around = [&](float value, float next) {
    const float middle = 0.5f * value + 0.5f * next;
    for (const float x : {value, middle}) {
      in.fp32.push_back(x);
      in.fp32.push_back(std::nextafterf(x, -INFINITY));
      in.fp32.push_back(std::nextafterf(x, INFINITY));
    }
  };
  for (uint32_t bits = 0; bits < 65535; ++bits) {
    const auto low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits + 1);
    around(ToFloat(Float16{low}), ToFloat(Float16{high}));
    around(ToFloat(BFloat16{low}), ToFloat(BFloat16{high}));
  }
  for (int i = -2000; i <= 2000; ++i) in.fp32.push_back(static_cast<float>(i) * 0.0517f);
  for (const float x : {65504.0f, 65519.996f, 65520.0f, 65536.0f, 1e30f, INFINITY, NAN}) {
    in.fp32.push_back(x);
    in.fp32.push_back(-x);
  }
  while (in.fp32.size() % 16 != 0) in.fp32.push_back(0.0f);
  return in;
}

SimdResults Compute(const SimdInputs& in) {
  SimdResults out;
  HWY_DYNAMIC_DISPATCH(RunSimd)(in, &out);
  return out;
}

template <class T>
bool SameBytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

class SimdTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { SetCpuTargetForTest(GetParam()); }
  void TearDown() override { SetCpuTargetForTest(""); }
};

TEST_P(SimdTest, LoadsEvery16BitValueExactly) {
  const SimdInputs in = Inputs();
  const SimdResults out = Compute(in);
  for (size_t i = 0; i < in.fp16.size(); ++i) {
    const float want16 = ToFloat(in.fp16[i]), want_b = ToFloat(in.bf16[i]);
    if (std::isnan(want16)) {
      ASSERT_TRUE(std::isnan(out.from_fp16[i])) << i;
    } else {
      ASSERT_EQ(std::bit_cast<uint32_t>(out.from_fp16[i]), std::bit_cast<uint32_t>(want16)) << i;
    }
    ASSERT_EQ(std::bit_cast<uint32_t>(out.from_bf16[i]), std::bit_cast<uint32_t>(want_b)) << i;
  }
}

TEST_P(SimdTest, StoresRoundToNearestEven) {
  const SimdInputs in = Inputs();
  const SimdResults out = Compute(in);
  size_t saturated = 0;
  for (size_t i = 0; i < in.fp32.size(); ++i) {
    const float x = in.fp32[i];
    ASSERT_EQ(out.to_fp16[i].bits, ToFloat16(x).bits) << x;
    ASSERT_EQ(out.to_bf16[i].bits, ToBFloat16(x).bits) << x;
    const bool beyond = std::abs(x) > kFloat16Max;
    saturated += beyond;
    const float clamped = beyond ? std::copysign(kFloat16Max, x) : x;
    ASSERT_EQ(out.saturated_fp16[i].bits, ToFloat16(clamped).bits) << x;
  }
  EXPECT_EQ(out.saturated, saturated);
}

// Distance of `got` from `want` in units of the last place of a binary32 at `want`.
double Ulps(float got, double want) {
  if (std::isinf(static_cast<float>(want))) return got == static_cast<float>(want) ? 0 : 1e9;
  const double magnitude = std::max(std::abs(want), 0x1p-126);
  const double ulp = std::exp2(std::floor(std::log2(magnitude)) - 23);
  return std::abs(got - want) / ulp;
}

TEST_P(SimdTest, ExpAndLogAreWithinTwoUlp) {
  const SimdInputs in = Inputs();
  const SimdResults out = Compute(in);
  double worst_exp = 0, worst_log = 0;
  for (size_t i = 0; i < in.fp32.size(); ++i) {
    const float x = in.fp32[i];
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(out.exp[i]) && std::isnan(out.log[i]));
      continue;
    }
    worst_exp = std::max(worst_exp, Ulps(out.exp[i], std::exp(static_cast<double>(x))));
    if (x < 0) {
      ASSERT_TRUE(std::isnan(out.log[i])) << x;
    } else {
      worst_log = std::max(worst_log, Ulps(out.log[i], std::log(static_cast<double>(x))));
    }
  }
  EXPECT_LE(worst_exp, 1.5);
  EXPECT_LE(worst_log, 1.5);
}

TEST_P(SimdTest, ReductionsFollowTheFixedTree) {
  const SimdResults out = Compute(Inputs());
  for (size_t count = 0; count <= 16; ++count) {
    float lane[16] = {}, largest = count == 16 ? -INFINITY : 0.0f;
    for (size_t i = 0; i < count; ++i) {
      lane[i] = 1.0f / static_cast<float>(3 * i + 1);
      largest = std::max(largest, lane[i]);
    }
    for (size_t width = 8; width >= 1; width /= 2) {
      for (size_t i = 0; i < width; ++i) lane[i] += lane[i + width];
    }
    EXPECT_EQ(out.sums[count], lane[0]) << count;
    EXPECT_EQ(out.maxima[count], largest) << count;
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, SimdTest, testing::ValuesIn(CpuTargets()),
                         [](const auto& target) { return target.param; });

TEST(SimdTargetsTest, ComputeTheSameBits) {
  const SimdInputs in = Inputs();
  SetCpuTargetForTest("");
  const SimdResults best = Compute(in);
  for (const std::string& target : CpuTargets()) {
    SetCpuTargetForTest(target);
    const SimdResults other = Compute(in);
    EXPECT_TRUE(SameBytes(best.from_fp16, other.from_fp16)) << target;
    EXPECT_TRUE(SameBytes(best.to_fp16, other.to_fp16)) << target;
    EXPECT_TRUE(SameBytes(best.to_bf16, other.to_bf16)) << target;
    EXPECT_TRUE(SameBytes(best.exp, other.exp)) << target;
    EXPECT_TRUE(SameBytes(best.log, other.log)) << target;
    EXPECT_TRUE(SameBytes(best.sums, other.sums)) << target;
  }
  SetCpuTargetForTest("");
}

TEST(CpuTargetTest, RefusesACpuWithoutFusedMultiplyAdd) {
  std::string why;
  EXPECT_TRUE(CpuSupported(&why));
  hwy::SetSupportedTargetsForTest(HWY_SSE4);
  EXPECT_FALSE(CpuSupported(&why));
  hwy::SetSupportedTargetsForTest(0);
  EXPECT_NE(why.find("AVX2"), std::string::npos);
}

TEST(CpuTargetDeathTest, EndsTheProcessWithAMessageOnSuchACpu) {
  const auto require = [] {
    hwy::SetSupportedTargetsForTest(HWY_SSE4);
    RequireSupportedCpu();
  };
  EXPECT_DEATH(require(), "this CPU lacks AVX2, FMA or F16C");
}

}  // namespace
}  // namespace halfstep::cpu
#endif  // HWY_ONCE
