// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/embedding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>

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
    for (const int32_t distinct : {20, 3}) {
      for (const int64_t width : {37, 64}) {
        Random random(2);
        const OwnedTensor dy = random.Normal(dtype, {300, width});
        const OwnedTensor tokens = random.Ids(300, distinct);
        OwnedTensor dtable = random.Normal(DType::kFloat32, {20, width});
        OwnedTensor exact = test::AsDouble(dtable), want = test::As(DType::kFloat32, dtable);
        EmbeddingBackward(ctx, dy, tokens, dtable);
        for (int64_t i = 0; i < 300 * width; ++i) {
          const int64_t at = tokens.view().as<int32_t>()[i / width] * width + i % width;
          exact.view().as<double>()[at] += LoadDouble(dy, i);
          want.view().as<float>()[at] += static_cast<float>(LoadDouble(dy, i));
        }
        EXPECT_TRUE(Close(dtable, exact, tolerance::kWeightGradient, Name(dtype)));
        EXPECT_TRUE(SameBits(dtable, want, "in ascending order"));
      }
    }
  }
}

TEST(EmbeddingTest, BackwardBitsDoNotDependOnThreadsTargetOrSplit) {
  for (const DType dtype : test::kRealDTypes) {
    Random random(3);
    const int64_t tokens_in_all = Many(2000, 400), most = tokens_in_all * 3 / 4;
    const OwnedTensor dy = random.Normal(dtype, {tokens_in_all, 150});
    const OwnedTensor tokens = random.Ids(tokens_in_all, 30);
    test::ExpectSameBitsOnEveryMachine(Name(dtype), [&](const ExecContext& ctx) {
      std::vector<OwnedTensor> out;
      out.push_back(Zeros(DType::kFloat32, {30, 150}));
      EmbeddingBackward(ctx, dy, tokens, out.back());
      OwnedTensor split = Zeros(DType::kFloat32, {30, 150});
      for (const auto& [begin, count] : {std::pair{int64_t{0}, int64_t{7}},
                                         {int64_t{7}, most},
                                         {7 + most, tokens_in_all - most - 7}}) {
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
  const OwnedTensor dy = Random(4).Normal(DType::kFloat16, {2, 8});
  OwnedTensor dtable = Zeros(DType::kFloat32, {5, 8});
  for (const int32_t token : {-1, 5}) {
    const OwnedTensor tokens = test::Ints({token, 1});
    for (const DType dtype : {DType::kFloat16, DType::kFloat32}) {
      OwnedTensor y = Zeros(dtype, {2, 8});
      if (!kEmulated) {
        EXPECT_DEATH(Embedding(ctx, tokens, table, y), "check failed");
        continue;
      }
      // The host does not see it: the row says so, and has no gradient.
      Embedding(ctx, tokens, table, y);
      for (int64_t i = 0; i < 16; ++i) EXPECT_EQ(std::isnan(LoadDouble(y, i)), i < 8);
    }
    if (!kEmulated) {
      EXPECT_DEATH(EmbeddingBackward(ctx, dy, tokens, dtable), "check failed");
      continue;
    }
    OwnedTensor want = test::As(DType::kFloat32, dtable);
    for (int64_t i = 0; i < 8; ++i) {
      want.view().as<float>()[8 + i] += static_cast<float>(LoadDouble(dy, 8 + i));
    }
    EmbeddingBackward(ctx, dy, tokens, dtable);
    EXPECT_TRUE(SameBits(dtable, want, "token " + std::to_string(token)));
  }
}

}  // namespace
}  // namespace halfstep
