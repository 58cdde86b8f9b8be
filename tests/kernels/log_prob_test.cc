// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/log_prob.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_target.h"
#include "kernels/ops/sampling.h"
#include "kernels/reference/linear.h"
#include "kernels/reference/log_prob.h"
#include "tests/kernels/op_test.h"

namespace halfstep {
namespace {

using test::AsDouble;
using test::Close;
using test::Distance;
using test::kRealDTypes;
using test::SameBits;
using test::TestContext;
using test::Zeros;

struct Dims {
  int64_t rows, hidden, vocab;
};
const std::vector<Dims> kCases = {{1, 8, 1},    {0, 8, 5},
                                  {3, 16, 15},  {5, 33, 16},
                                  {7, 20, 17},  {9, 24, 63},
                                  {70, 24, 65}, {4, 40, 300},
                                  {4, 16, 511}, {Many(900, 130), 12, 300},
                                  {4, 8, 4999}, {Many(66, 18), 8, 5000}};

struct Head {
  OwnedTensor weight, packed;
  LinearWeight view() const { return {weight.view(), packed.view(), {}}; }
};

Head MakeHead(const ExecContext& ctx, test::Random& random, DType dtype, const Dims& dims) {
  Head head;
  head.weight = random.Normal(dtype, {dims.vocab, dims.hidden}, 0.5);
  head.packed =
      Zeros(DType::kUInt8,
            {static_cast<int64_t>(PackedLinearBytes(ctx.device, dtype, dims.vocab, dims.hidden))});
  PackLinear(ctx, std::as_const(head.weight).view(), head.packed);
  return head;
}

// Everything the forward gives.
struct Forward {
  OwnedTensor log_probs, entropy, lse;
};

Forward Compute(const ExecContext& ctx, ConstTensor hidden, const Head& head, ConstTensor targets,
                float temperature) {
  const Shape rows{hidden.dim(0)};
  Forward f{Zeros(DType::kFloat32, rows), Zeros(DType::kFloat32, rows),
            Zeros(DType::kFloat32, rows)};
  LmHeadLogProb(ctx, hidden, head.view(), targets, temperature, f.log_probs, f.entropy, f.lse);
  return f;
}

class LogProbTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { SetCpuTargetForTest(GetParam()); }
  void TearDown() override { SetCpuTargetForTest(""); }
};

std::string CaseName(const Dims& dims, DType dtype, float temperature) {
  return std::string(Name(dtype)) + " rows " + std::to_string(dims.rows) + " vocab " +
         std::to_string(dims.vocab) + " temperature " + std::to_string(temperature);
}

TEST_P(LogProbTest, MatchesTheReference) {
  TestContext ctx(2);
  test::Random random(1);
  for (const DType dtype : kRealDTypes) {
    for (const Dims& dims : kCases) {
      for (const float temperature : {1.0f, 0.7f}) {
        const OwnedTensor hidden = random.Normal(dtype, {dims.rows, dims.hidden});
        const Head head = MakeHead(ctx, random, dtype, dims);
        const OwnedTensor targets = random.Ids(dims.rows, static_cast<int32_t>(dims.vocab));
        const Forward got = Compute(ctx, hidden, head, targets, temperature);

        // The reference starts from the same FP32 logits.
        OwnedTensor logits = Zeros(DType::kFloat32, {dims.rows, dims.vocab});
        Linear(ctx, hidden, head.view(), logits);
        OwnedTensor log_probs = Zeros(DType::kFloat64, {dims.rows});
        OwnedTensor entropy = Zeros(DType::kFloat64, {dims.rows});
        OwnedTensor lse = Zeros(DType::kFloat64, {dims.rows});
        reference::LogProb(AsDouble(logits), targets, temperature, log_probs, entropy, lse);
        const std::string name = CaseName(dims, dtype, temperature);
        const auto near = [&](const OwnedTensor& a, const OwnedTensor& b) {
          return Close(a, b, tolerance::kLogProb, name, Distance::kAbsolute);
        };
        EXPECT_TRUE(near(got.log_probs, log_probs));
        EXPECT_TRUE(near(got.entropy, entropy));
        EXPECT_TRUE(near(got.lse, lse));
      }
    }
  }
}

TEST_P(LogProbTest, BackwardMatchesTheReference) {
  TestContext ctx(2);
  test::Random random(2);
  const float temperature = 0.8f;
  for (const DType dtype : kRealDTypes) {
    for (const Dims& dims : kCases) {
      const OwnedTensor hidden = random.Normal(dtype, {dims.rows, dims.hidden});
      const Head head = MakeHead(ctx, random, dtype, dims);
      const OwnedTensor targets = random.Ids(dims.rows, static_cast<int32_t>(dims.vocab));
      const OwnedTensor dlog_probs = random.Normal(DType::kFloat32, {dims.rows}, 64);
      const Forward forward = Compute(ctx, hidden, head, targets, temperature);
      OwnedTensor dhidden = Zeros(dtype, {dims.rows, dims.hidden});
      OwnedTensor dhead = random.Normal(DType::kFloat32, {dims.vocab, dims.hidden});
      OwnedTensor want_dhead = AsDouble(dhead);
      LmHeadLogProbBackward(ctx, dlog_probs, hidden, head.view(), targets, temperature, forward.lse,
                            dhidden, dhead);

      OwnedTensor logits = Zeros(DType::kFloat64, {dims.rows, dims.vocab});
      reference::Linear(AsDouble(hidden), AsDouble(head.weight), {}, logits);
      OwnedTensor dlogits = Zeros(DType::kFloat64, {dims.rows, dims.vocab});
      reference::LogProbBackward(AsDouble(dlog_probs), logits, targets, temperature, dlogits);
      const OwnedTensor rounded = AsDouble(test::As(dtype, dlogits));
      OwnedTensor want_dhidden = Zeros(DType::kFloat64, {dims.rows, dims.hidden});
      reference::LinearBackwardInput(rounded, AsDouble(head.weight), want_dhidden);
      reference::LinearBackwardWeight(rounded, AsDouble(hidden), want_dhead, {});
      // dlogits are rounded from FP32 probabilities here and from doubles there.
      const std::string name = CaseName(dims, dtype, temperature);
      const double tolerance = tolerance::PerDType(dtype, 6e-4, 2e-5);
      EXPECT_TRUE(Close(dhidden, want_dhidden, tolerance, name + " dhidden"));
      EXPECT_TRUE(Close(dhead, want_dhead, tolerance, name + " dhead"));
    }
  }
}

// d of the sum of weights * -entropy by the hidden states; rows without weight keep their bits.
TEST_P(LogProbTest, EntropyTermMatchesFiniteDifferences) {
  TestContext ctx(2);
  test::Random random(9);
  const float temperature = 0.8f;
  const Dims dims{70, 8, 37};  // more rows than are taken at a time
  OwnedTensor hidden = random.Normal(DType::kFloat32, {dims.rows, dims.hidden});
  const Head head = MakeHead(ctx, random, DType::kFloat32, dims);
  const OwnedTensor targets = random.Ids(dims.rows, static_cast<int32_t>(dims.vocab));
  const OwnedTensor dlog_probs = random.Normal(DType::kFloat32, {dims.rows});
  OwnedTensor weights = random.Normal(DType::kFloat32, {dims.rows});
  weights.view().as<float>()[2] = 0;
  const Forward forward = Compute(ctx, hidden, head, targets, temperature);
  const auto backward = [&](const EntropyTerm& term) {
    OwnedTensor dhidden = Zeros(DType::kFloat32, {dims.rows, dims.hidden});
    OwnedTensor dhead = Zeros(DType::kFloat32, {dims.vocab, dims.hidden});
    LmHeadLogProbBackward(ctx, dlog_probs, hidden, head.view(), targets, temperature, forward.lse,
                          dhidden, dhead, term);
    return dhidden;
  };
  const OwnedTensor plain = backward({});
  const OwnedTensor got = backward({weights.view(), forward.entropy.view()});
  EXPECT_EQ(std::memcmp(got.view().Rows(2, 1).data(), plain.view().Rows(2, 1).data(),
                        plain.view().Rows(2, 1).bytes()),
            0);
  const auto loss = [&] {
    const Forward moved = Compute(ctx, hidden, head, targets, temperature);
    double sum = 0;
    for (int64_t r = 0; r < dims.rows; ++r) {
      sum +=
          static_cast<double>(dlog_probs.view().as<float>()[r]) *
              moved.log_probs.view().as<float>()[r] -
          static_cast<double>(weights.view().as<float>()[r]) * moved.entropy.view().as<float>()[r];
    }
    return sum;
  };
  constexpr float kStep = 0x1p-8f;
  float* const values = hidden.view().as<float>();
  for (const int64_t row : {0, 1, 2, 63, 64, 69}) {
    for (int64_t i = row * dims.hidden; i < (row + 1) * dims.hidden; ++i) {
      const float original = values[i];
      values[i] = original + kStep;
      const double above = loss();
      values[i] = original - kStep;
      const double below = loss();
      values[i] = original;
      const double slope = (above - below) / (2 * kStep);
      EXPECT_NEAR(got.view().as<float>()[i], slope, 2e-3 * (1 + std::abs(slope))) << i;
    }
  }
}

TEST_P(LogProbTest, NonFiniteLogitGivesNan) {
  TestContext ctx;
  for (const float bad :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN()}) {
    for (int64_t where = 0; where < 20; ++where) {
      OwnedTensor logits = Zeros(DType::kFloat32, {2, 20});
      logits.view().as<float>()[where] = bad;
      OwnedTensor tokens = Zeros(DType::kInt32, {2}), log_probs = Zeros(DType::kFloat32, {2});
      std::vector<SamplingRow> rows(2);
      rows[0].top_k = static_cast<int32_t>(where % 2);
      SampleTokens(ctx, logits, rows, tokens, log_probs);
      EXPECT_EQ(tokens.view().as<int32_t>()[0], -1);
      EXPECT_TRUE(std::isnan(log_probs.view().as<float>()[0]));
      EXPECT_GE(tokens.view().as<int32_t>()[1], 0);
      EXPECT_NEAR(log_probs.view().as<float>()[1], -std::log(20.0), 1e-6);
    }
  }
}

TEST_P(LogProbTest, SamplerAndLearnerAgreeBitForBit) {
  test::Random random(3);
  for (const DType dtype : kRealDTypes) {
    const Dims small{Many(90, 20), 48, 301}, large{Many(9, 3), 16, 5000};
    for (const auto& [dims, temperature] :
         {std::pair{small, 1.0f}, {small, 0.6f}, {large, 1.0f}, {large, 0.6f}}) {
      TestContext alone, shared(3);
      const OwnedTensor hidden = random.Normal(dtype, {dims.rows, dims.hidden});
      const Head head = MakeHead(alone, random, dtype, dims);
      // The rollout computes one row at a time, the learner all of them with more threads.
      OwnedTensor tokens = Zeros(DType::kInt32, {dims.rows});
      OwnedTensor log_probs = Zeros(DType::kFloat32, {dims.rows});
      OwnedTensor logits = Zeros(DType::kFloat32, {1, dims.vocab});
      for (int64_t r = 0; r < dims.rows; ++r) {
        Linear(alone, hidden.view().Rows(r, 1), head.view(), logits);
        SamplingRow row;
        row.key.position = static_cast<uint32_t>(r);
        row.temperature = temperature;
        SampleTokens(alone, logits, {&row, 1}, tokens.view().Rows(r, 1),
                     log_probs.view().Rows(r, 1));
      }
      const Forward learner = Compute(shared, hidden, head, tokens, temperature);
      EXPECT_TRUE(SameBits(learner.log_probs, log_probs, Name(dtype)));
    }
  }
}

TEST(LogProbReferenceTest, GradientMatchesFiniteDifferences) {
  test::Random random(5);
  OwnedTensor logits = random.Normal(DType::kFloat64, {3, 7});
  const OwnedTensor targets = random.Ids(3, 7);
  const OwnedTensor dlog_probs = random.Normal(DType::kFloat64, {3});
  const auto loss = [&] {
    OwnedTensor log_probs = Zeros(DType::kFloat64, {3}), entropy = Zeros(DType::kFloat64, {3});
    OwnedTensor lse = Zeros(DType::kFloat64, {3});
    reference::LogProb(logits, targets, 0.7, log_probs, entropy, lse);
    return test::Inner(log_probs, dlog_probs);
  };
  OwnedTensor dlogits = Zeros(DType::kFloat64, {3, 7});
  reference::LogProbBackward(dlog_probs, logits, targets, 0.7, dlogits);
  EXPECT_TRUE(test::MatchesFiniteDifference(loss, logits, dlogits, "dlogits"));
}

TEST(LogProbBitwiseTest, BatchThreadsAndTargetsComputeTheSameBits) {
  test::Random random(6);
  TestContext one;
  const Dims dims{Many(150, 75), 40, Many(301, 133)};
  const int64_t part = Many(37, 32);
  for (const DType dtype : kRealDTypes) {
    const OwnedTensor hidden = random.Normal(dtype, {dims.rows, dims.hidden});
    const Head head = MakeHead(one, random, dtype, dims);
    const OwnedTensor targets = random.Ids(dims.rows, static_cast<int32_t>(dims.vocab));
    const OwnedTensor dlog_probs = random.Normal(DType::kFloat32, {dims.rows});
    const auto backward = [&](const ExecContext& ctx, const Forward& forward, int64_t step) {
      std::pair<OwnedTensor, OwnedTensor> out{Zeros(dtype, {dims.rows, dims.hidden}),
                                              Zeros(DType::kFloat32, {dims.vocab, dims.hidden})};
      for (int64_t r = 0; r < dims.rows; r += step) {
        const auto rows = [&](const OwnedTensor& x) {
          return x.view().Rows(r, std::min(step, dims.rows - r));
        };
        LmHeadLogProbBackward(ctx, rows(dlog_probs), rows(hidden), head.view(), rows(targets), 0.9f,
                              rows(forward.lse), out.first.view().Rows(r, rows(hidden).dim(0)),
                              out.second);
      }
      return out;
    };
    const Forward want = Compute(one, hidden, head, targets, 0.9f);
    const auto want_gradient = backward(one, want, dims.rows);
    for (const std::string& target : test::MachinesUnderTest()) {
      for (const int threads : {1, 2, 3}) {
        SetCpuTargetForTest(target);
        TestContext ctx(threads);
        const std::string name = std::string(Name(dtype)) + " " + target;
        const Forward got = Compute(ctx, hidden, head, targets, 0.9f);
        EXPECT_TRUE(SameBits(got.log_probs, want.log_probs, name));
        EXPECT_TRUE(SameBits(got.entropy, want.entropy, name));
        EXPECT_TRUE(SameBits(got.lse, want.lse, name));
        const auto gradient = backward(ctx, got, part);
        EXPECT_TRUE(SameBits(gradient.first, want_gradient.first, name));
        EXPECT_TRUE(SameBits(gradient.second, want_gradient.second, name));
        SetCpuTargetForTest("");
      }
    }
  }
}

// More rows than any backend takes at a time.
TEST(LogProbBitwiseTest, ChunksChangeNoBit) {
  test::Random random(7);
  const TestContext ctx;
  const Dims dims{2100, 8, 133};
  const DType dtype = DType::kFloat16;
  const OwnedTensor hidden = random.Normal(dtype, {dims.rows, dims.hidden});
  const Head head = MakeHead(ctx, random, dtype, dims);
  const OwnedTensor targets = random.Ids(dims.rows, static_cast<int32_t>(dims.vocab));
  const OwnedTensor dlog_probs = random.Normal(DType::kFloat32, {dims.rows});
  const OwnedTensor weights = random.Normal(DType::kFloat32, {dims.rows});
  struct Results {
    OwnedTensor log_probs, entropy, lse, dhidden, dhead;
  };
  const auto run = [&](int64_t most_rows) {
    Results all{Zeros(DType::kFloat32, {dims.rows}), Zeros(DType::kFloat32, {dims.rows}),
                Zeros(DType::kFloat32, {dims.rows}), Zeros(dtype, {dims.rows, dims.hidden}),
                Zeros(DType::kFloat32, {dims.vocab, dims.hidden})};
    for (int64_t r = 0; r < dims.rows; r += most_rows) {
      const auto rows = [&](auto& x) {
        return x.view().Rows(r, std::min(most_rows, dims.rows - r));
      };
      LmHeadLogProb(ctx, rows(hidden), head.view(), rows(targets), 0.9f, rows(all.log_probs),
                    rows(all.entropy), rows(all.lse));
      LmHeadLogProbBackward(ctx, rows(dlog_probs), rows(hidden), head.view(), rows(targets), 0.9f,
                            rows(all.lse), rows(all.dhidden), all.dhead,
                            {rows(weights), rows(all.entropy)});
    }
    return all;
  };
  const Results whole = run(dims.rows), parts = run(1040);
  EXPECT_TRUE(SameBits(parts.log_probs, whole.log_probs, "log_probs"));
  EXPECT_TRUE(SameBits(parts.entropy, whole.entropy, "entropy"));
  EXPECT_TRUE(SameBits(parts.lse, whole.lse, "lse"));
  EXPECT_TRUE(SameBits(parts.dhidden, whole.dhidden, "dhidden"));
  EXPECT_TRUE(SameBits(parts.dhead, whole.dhead, "dhead"));
}

INSTANTIATE_TEST_SUITE_P(Targets, LogProbTest, testing::ValuesIn(test::MachinesUnderTest()),
                         [](const auto& target) { return target.param; });

}  // namespace
}  // namespace halfstep
