// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/sampling.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_target.h"
#include "kernels/reference/sampling.h"
#include "tests/kernels/op_test.h"

namespace halfstep {
namespace {

using test::SameBits;
using test::TestContext;
using test::Zeros;

struct Samples {
  OwnedTensor tokens, log_probs;
  int32_t token(int64_t row) const { return tokens.view().as<int32_t>()[row]; }
  float log_prob(int64_t row) const { return log_probs.view().as<float>()[row]; }
};

Samples Sample(const ExecContext& ctx, ConstTensor logits, const std::vector<SamplingRow>& rows) {
  const Shape shape{static_cast<int64_t>(rows.size())};
  Samples s{Zeros(DType::kInt32, shape), Zeros(DType::kFloat32, shape)};
  SampleTokens(ctx, logits, rows, s.tokens, s.log_probs);
  return s;
}

// The same logits for every row.
OwnedTensor Repeat(const std::vector<float>& logits, int64_t rows) {
  const auto vocab = static_cast<int64_t>(logits.size());
  OwnedTensor x = Zeros(DType::kFloat32, {rows, vocab});
  for (int64_t r = 0; r < rows; ++r) {
    std::copy(logits.begin(), logits.end(), x.view().as<float>() + r * vocab);
  }
  return x;
}

std::vector<double> RowAsDouble(ConstTensor logits, int64_t row) {
  const float* const begin = logits.as<float>() + row * logits.dim(1);
  return std::vector<double>(begin, begin + logits.dim(1));
}

// Rows that differ in every part of the key.
std::vector<SamplingRow> DistinctRows(int64_t count, SamplingRow row = {}) {
  std::vector<SamplingRow> rows;
  for (int64_t r = 0; r < count; ++r) {
    row.key.seed = 0x123456789abcdefull * static_cast<uint64_t>(r % 3);
    row.key.domain = static_cast<SamplingDomain>(r % 2);
    row.key.group = static_cast<uint64_t>(r % 5) << (r % 2 ? 0 : 32);
    row.key.index = static_cast<uint32_t>(r % 7);
    row.key.position = static_cast<uint32_t>(r);
    rows.push_back(row);
  }
  return rows;
}

class SamplingTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { SetCpuTargetForTest(GetParam()); }
  void TearDown() override { SetCpuTargetForTest(""); }
};

TEST_P(SamplingTest, ChoosesWhatTheReferenceChooses) {
  TestContext ctx(2);
  test::Random random(1);
  for (const int64_t vocab : {1, 2, 15, 16, 17, 63, 64, 65, 300, 1000, 5000}) {
    const int64_t count = Many(200, vocab < 5000 ? 110 : 40);
    const OwnedTensor logits = random.Normal(DType::kFloat32, {count, vocab}, 2);
    std::vector<SamplingRow> rows = DistinctRows(count);
    for (int64_t r = 0; r < count; ++r) {
      rows[r].temperature = r % 4 == 0 ? 0.0f : 0.5f * static_cast<float>(r % 4);
      rows[r].top_k = r % 3 == 1 ? static_cast<int32_t>(1 + r % 9) : 0;
      rows[r].top_p = r % 5 == 1 ? 0.003f * static_cast<float>(r + 1) : 1.0f;
      rows[r].min_p = r % 7 == 1 ? 0.002f * static_cast<float>(r) : 0.0f;
    }
    const Samples got = Sample(ctx, logits, rows);
    for (int64_t r = 0; r < count; ++r) {
      ASSERT_EQ(got.token(r), reference::SampleToken(RowAsDouble(logits, r), rows[r]))
          << "vocab " << vocab << " row " << r;
    }
  }
}

// At temperature 1.
const std::vector<double> kProbability = {0.5, 0.25, 0.125, 0.0625, 0.0625};

Samples SampleProbability(const ExecContext& ctx, float temperature) {
  std::vector<float> logits;
  for (const double p : kProbability) logits.push_back(static_cast<float>(std::log(p)));
  const int64_t count = Many(20000, 4000);
  SamplingRow row;
  row.temperature = temperature;
  return Sample(ctx, Repeat(logits, count), DistinctRows(count, row));
}

double ChiSquared(const Samples& samples) {
  const auto count = static_cast<double>(samples.tokens.view().elements());
  std::array<int64_t, 5> seen{};
  for (int64_t r = 0; r < samples.tokens.view().elements(); ++r) {
    ++seen.at(static_cast<size_t>(samples.token(r)));
  }
  double chi_squared = 0;
  for (size_t j = 0; j < 5; ++j) {
    const double expected = kProbability[j] * count;
    chi_squared += (seen[j] - expected) * (seen[j] - expected) / expected;
  }
  return chi_squared;
}
constexpr double kChiSquaredLimit = 18.47;  // 0.999 quantile for four degrees of freedom

TEST_P(SamplingTest, FollowsTheDistribution) {
  TestContext ctx(2);
  const Samples got = SampleProbability(ctx, 1);
  EXPECT_LT(ChiSquared(got), kChiSquaredLimit);
  for (int64_t r = 0; r < got.tokens.view().elements(); ++r) {
    ASSERT_NEAR(got.log_prob(r), std::log(kProbability[static_cast<size_t>(got.token(r))]), 1e-6);
  }
}

TEST_P(SamplingTest, AWrongTemperatureIsAnotherDistribution) {
  TestContext ctx(2);
  EXPECT_GT(ChiSquared(SampleProbability(ctx, 1.25f)), 2 * kChiSquaredLimit);
}

// Of the size of the largest models.
TEST_P(SamplingTest, CutsALargeVocabularyAsTheReferenceDoes) {
  TestContext ctx(2);
  test::Random random(5);
  const int64_t vocab = 152064;
  std::vector<SamplingRow> rows = DistinctRows(4);
  rows[1].top_k = 50;
  rows[2].top_p = 0.6f;
  rows[3].temperature = 0.7f;
  rows[3].top_k = 3000;
  rows[3].top_p = 0.9f;
  rows[3].min_p = 0.01f;
  const OwnedTensor logits = random.Normal(DType::kFloat32, {4, vocab}, 3);
  const Samples got = Sample(ctx, logits, rows);
  for (int64_t r = 0; r < 4; ++r) {
    EXPECT_EQ(got.token(r), reference::SampleToken(RowAsDouble(logits, r), rows[r])) << r;
  }
}

TEST_P(SamplingTest, DoesNotDependOnTheRestOfTheBatch) {
  TestContext one, three(3);
  test::Random random(2);
  const int64_t count = Many(150, 60);
  const OwnedTensor logits = random.Normal(DType::kFloat32, {count, 301});
  std::vector<SamplingRow> rows = DistinctRows(count);
  for (int64_t r = 0; r < count; r += 3) rows[r].top_p = 0.9f;
  const Samples all = Sample(three, logits, rows);
  for (int64_t r = 0; r < count; ++r) {
    const Samples alone = Sample(one, logits.view().Rows(r, 1), {rows[r]});
    ASSERT_EQ(alone.token(0), all.token(r)) << r;
    ASSERT_EQ(alone.log_prob(0), all.log_prob(r)) << r;
  }
}

TEST_P(SamplingTest, LogProbIgnoresTheCuts) {
  TestContext ctx;
  test::Random random(3);
  const OwnedTensor logits = random.Normal(DType::kFloat32, {1, 100});
  SamplingRow plain, cut;
  cut.top_k = 1;
  const Samples greedy = Sample(ctx, logits, {cut});
  // The same id from an uncut row, found by trying positions.
  for (plain.key.position = 0;; ++plain.key.position) {
    const Samples s = Sample(ctx, logits, {plain});
    if (s.token(0) != greedy.token(0)) continue;
    EXPECT_EQ(s.log_prob(0), greedy.log_prob(0));
    break;
  }
}

TEST_P(SamplingTest, LowestIdWinsTies) {
  TestContext ctx;
  std::vector<float> row(600, 0.0f);
  row[7] = row[23] = row[39] = row[599] = 2.0f;
  SamplingRow greedy;
  greedy.temperature = 0;
  EXPECT_EQ(Sample(ctx, Repeat(row, 1), {greedy}).token(0), 7);
  SamplingRow top_1;
  top_1.top_k = 1;
  EXPECT_EQ(Sample(ctx, Repeat(row, 1), {top_1}).token(0), 7);
}

TEST_P(SamplingTest, CutsKeepEqualLogitsByAscendingId) {
  TestContext ctx(2);
  const int64_t count = Many(2000, 400);
  std::vector<float> row(40, 0.0f);
  row[1] = row[2] = -0.0f;  // equal to 0
  row[30] = 1.0f;
  const auto seen = [&](const SamplingRow& cut) {
    const Samples got = Sample(ctx, Repeat(row, count), DistinctRows(count, cut));
    std::set<int32_t> ids;
    for (int64_t r = 0; r < count; ++r) ids.insert(got.token(r));
    return ids;
  };
  SamplingRow cut;
  cut.top_k = 4;
  EXPECT_EQ(seen(cut), (std::set<int32_t>{0, 1, 2, 30}));
  // Relative to the first one, each of the others has a mass of exp(-1); 0.1 of all is 1.5347.
  cut.top_k = 0;
  cut.top_p = 0.1f;
  EXPECT_EQ(seen(cut), (std::set<int32_t>{0, 1, 30}));
  cut.top_k = 2;
  EXPECT_EQ(seen(cut), (std::set<int32_t>{0, 30}));
  cut.top_p = 1;
  cut.min_p = 0.3f;
  EXPECT_EQ(seen(cut), (std::set<int32_t>{0, 30}));
}

TEST_P(SamplingTest, EveryCutKeepsAtLeastOneToken) {
  TestContext ctx;
  const OwnedTensor logits = Repeat({0.0f, 3.0f, 1.0f}, 1);
  SamplingRow cut;
  cut.top_p = 0;
  EXPECT_EQ(Sample(ctx, logits, {cut}).token(0), 1);
  cut = {};
  cut.min_p = 1;
  EXPECT_EQ(Sample(ctx, logits, {cut}).token(0), 1);
}

INSTANTIATE_TEST_SUITE_P(Targets, SamplingTest, testing::ValuesIn(test::MachinesUnderTest()),
                         [](const auto& target) { return target.param; });

TEST(SamplingTargetsTest, ComputeTheSameBits) {
  TestContext ctx;
  test::Random random(4);
  const int64_t count = Many(300, 60);
  const OwnedTensor logits = random.Normal(DType::kFloat32, {count, 333}, 3);
  std::vector<SamplingRow> rows = DistinctRows(count);
  for (int64_t r = 0; r < count; r += 3) rows[r].top_p = 0.8f;
  for (int64_t r = 0; r < count; r += 4) rows[r].top_k = 9;
  const Samples best = Sample(ctx, logits, rows);
  for (const std::string& target : CpuTargets()) {
    SetCpuTargetForTest(target);
    const Samples other = Sample(ctx, logits, rows);
    EXPECT_TRUE(SameBits(other.tokens, best.tokens, target));
    EXPECT_TRUE(SameBits(other.log_probs, best.log_probs, target));
  }
  SetCpuTargetForTest("");
}

#if defined(HALFSTEP_TEST_CUDA)
// Equal logits: exp and log have the same bits on both, so noise, top-k and min-p are the same.
// Sums differ by rounding, which moves the edge of top-p only where it meets a sum.
TEST(CudaSamplingTest, ChoosesWhatTheCpuChooses) {
  TestContext cuda;
  Workspace workspace;
  ExecContext cpu;
  cpu.workspace = &workspace;
  test::Random random(6);
  int64_t with_top_p = 0, differ = 0;
  for (const int64_t vocab : {1, 4, 17, 333, 4096, 4100}) {
    const int64_t count = vocab < 4000 ? 160 : 32;
    const OwnedTensor logits = random.Normal(DType::kFloat32, {count, vocab}, 3);
    std::vector<SamplingRow> rows = DistinctRows(count);
    for (int64_t r = 0; r < count; ++r) {
      rows[r].temperature = 0.4f * static_cast<float>(r % 4);
      rows[r].top_k = r % 3 == 1 ? static_cast<int32_t>(1 + r) : 0;
      rows[r].min_p = r % 5 == 1 ? 0.05f : 0.0f;
      rows[r].top_p = r % 2 == 1 ? 0.005f * static_cast<float>(r + 1) : 1.0f;
    }
    const Samples got = Sample(cuda, logits, rows), want = Sample(cpu, logits, rows);
    for (int64_t r = 0; r < count; ++r) {
      const bool same = got.token(r) == want.token(r);
      if (rows[r].top_p < 1) {
        ++with_top_p;
        differ += same ? 0 : 1;
      } else {
        ASSERT_TRUE(same) << "vocab " << vocab << " row " << r;
      }
      if (same) EXPECT_NEAR(got.log_prob(r), want.log_prob(r), tolerance::kLogProb);
    }
  }
  EXPECT_LE(differ, with_top_p / 200);
}
#endif

TEST(PhiloxTest, MatchesThePublishedVectors) {
  // Known answers of the Random123 distribution for philox4x32-10.
  EXPECT_EQ(Philox4x32({{0, 0, 0, 0}}, {{0, 0}}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({{~0u, ~0u, ~0u, ~0u}}, {{~0u, ~0u}}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(
      Philox4x32({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, {{0xa4093822, 0x299f31d0}}),
      (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, UniformsAreInsideTheOpenInterval) {
  EXPECT_GT(UniformFromBits(0), 0.0f);
  EXPECT_LT(UniformFromBits(~0u), 1.0f);
  EXPECT_LT(UniformFromBits(0), UniformFromBits(1u << 9));
}

}  // namespace
}  // namespace halfstep
