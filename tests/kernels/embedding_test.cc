// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/embedding.h"

#include <gtest/gtest.h>

#include "tests/kernels/op_test.h"

namespace halfstep {
namespace {

using test::Close;
using test::LoadDouble;
using test::Random;
using test::SameBits;
using test::TestContext;
using test::Zeros;

TEST(EmbeddingTest, CopiesRowsExactly) {
  const TestContext ctx;
  for (const DType dtype : test::kRealDTypes) {
    for (const int64_t count : {0, 1, 100}) {
      Random random(1);
      const OwnedTensor table = random.Normal(dtype, {50, 37});
      const OwnedTensor tokens = random.Ids(count, 50);
      OwnedTensor y = Zeros(dtype, {count, 37});
      Embedding(ctx, tokens, table, y);
      for (int64_t t = 0; t < count; ++t) {
        const int32_t id = tokens.view().as<int32_t>()[t];
        EXPECT_TRUE(SameBits(y.view().Rows(t, 1), table.view().Rows(id, 1), Name(dtype)));
      }
    }
  }
}

TEST(EmbeddingTest, BackwardAddsRowsToWhatIsThere) {
  const TestContext ctx;
  for (const DType dtype : test::kRealDTypes) {
    Random random(2);
    const OwnedTensor dy = random.Normal(dtype, {300, 37});
    const OwnedTensor tokens = random.Ids(300, 20);
    OwnedTensor dtable = random.Normal(DType::kFloat32, {20, 37});
    OwnedTensor want = test::AsDouble(dtable);
    EmbeddingBackward(ctx, dy, tokens, dtable);
    for (int64_t i = 0; i < 300 * 37; ++i) {
      want.view().as<double>()[tokens.view().as<int32_t>()[i / 37] * 37 + i % 37] +=
          LoadDouble(dy, i);
    }
    EXPECT_TRUE(Close(dtable, want, tolerance::kWeightGradient, Name(dtype)));
  }
}

TEST(EmbeddingTest, BackwardBitsDoNotDependOnThreadsTargetOrSplit) {
  for (const DType dtype : test::kRealDTypes) {
    Random random(3);
    const OwnedTensor dy = random.Normal(dtype, {2000, 150});
    const OwnedTensor tokens = random.Ids(2000, 30);
    test::ExpectSameBitsOnEveryMachine(Name(dtype), [&](const ExecContext& ctx) {
      std::vector<OwnedTensor> out;
      out.push_back(Zeros(DType::kFloat32, {30, 150}));
      EmbeddingBackward(ctx, dy, tokens, out.back());
      OwnedTensor split = Zeros(DType::kFloat32, {30, 150});
      for (const auto& [begin, count] : {std::pair{0, 7}, {7, 1500}, {1507, 493}}) {
        EmbeddingBackward(ctx, dy.view().Rows(begin, count), tokens.view().Rows(begin, count),
                          split);
      }
      EXPECT_TRUE(SameBits(split, out.back(), "split"));
      return out;
    });
  }
}

TEST(EmbeddingDeathTest, TokenOutsideTheTableIsAnInvariant) {
  const TestContext ctx;
  const OwnedTensor table = Zeros(DType::kFloat16, {5, 8});
  OwnedTensor y = Zeros(DType::kFloat16, {1, 8});
  EXPECT_DEATH(Embedding(ctx, test::Ints({5}), table, y), "check failed");
  EXPECT_DEATH(Embedding(ctx, test::Ints({-1}), table, y), "check failed");
}

}  // namespace
}  // namespace halfstep
