// SPDX-License-Identifier: Apache-2.0
// The bitwise contract of attention: training, prefill in any chunks and decoding token by token
// give the same bits, for any page layout, batch, thread count and CPU target.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/ops/attention.h"
#include "tests/kernels/attention_case.h"
#include "tests/kernels/op_test.h"
#include "tests/kernels/paged_cache.h"

namespace halfstep {
namespace {

using test::AttentionCase;
using test::AttentionShape;
using test::PagedCache;
using test::Random;
using test::SameBits;
using test::TestContext;
using test::Zeros;

// Random progress: every sequence gets a chunk of up to `most` tokens, or none, at each step.
OwnedTensor RunPaged(const ExecContext& ctx, const AttentionCase& in, int32_t most, uint64_t seed) {
  Random random(seed);
  PagedCache cache(in, random);
  OwnedTensor out = Zeros(in.dtype, in.q.view().shape());
  std::vector<int32_t> from(in.shape.lengths.size(), 0);
  while (from != in.shape.lengths) {
    std::vector<int32_t> to = from;
    for (size_t s = 0; s < to.size(); ++s) {
      const int32_t left = in.shape.lengths[s] - from[s];
      to[s] += std::min(left, most == 1 ? 1 : random.Below(most + 1));
    }
    cache.Step(ctx, from, to, out);
    from = to;
  }
  return out;
}

const std::vector<AttentionShape>& Shapes() {
  static const std::vector<AttentionShape> shapes = {
      {4, 4, 16, {45, 7, 33, 64, 1}},
      {6, 3, 32, {70, 32, 31, 5}},
      {4, 1, 64, {100, 20}},
      {2, 1, 80, {40, 41}},
      {3, 3, 24, {37, 3}},
      {10, 2, 128, {50}},
      {18, 1, 8, {34, 66}},
      {2, 2, 96, {66}},
      {4, 2, 15, {34, 9}},
      {4, 2, 136, {20, 3}},
  };
  static const std::vector<AttentionShape> emulated = {
      {2, 2, 16, {33, 7, 1}}, {4, 2, 32, {66, 5}},  {4, 1, 64, {65}}, {2, 1, 80, {40}},
      {1, 1, 24, {37, 3}},    {5, 1, 128, {18}},    {18, 1, 8, {34}}, {1, 1, 96, {34}},
      {2, 1, 15, {34, 9}},    {2, 1, 136, {18, 3}},
  };
  return kEmulated ? emulated : shapes;
}

OwnedTensor TrainingForward(const ExecContext& ctx, const AttentionCase& in) {
  OwnedTensor out = Zeros(in.dtype, in.q.view().shape());
  OwnedTensor lse = Zeros(DType::kFloat32, {in.shape.heads, in.shape.tokens()});
  CausalAttention(ctx, in.packed(), out, lse);
  return out;
}

TEST(AttentionBitwiseTest, TrainingEqualsPrefillEqualsDecode) {
  const TestContext ctx(2);
  for (const DType dtype : test::kRealDTypes) {
    for (const AttentionShape& shape : Shapes()) {
      const AttentionCase in(dtype, shape);
      const OwnedTensor want = TrainingForward(ctx, in);
      EXPECT_TRUE(SameBits(RunPaged(ctx, in, 1000, 1), want, in.name() + " prefill"));
      EXPECT_TRUE(SameBits(RunPaged(ctx, in, 1, 2), want, in.name() + " decode"));
      for (uint64_t seed = 3; seed < static_cast<uint64_t>(Many(6, 4)); ++seed) {
        EXPECT_TRUE(SameBits(RunPaged(ctx, in, 20, seed), want, in.name() + " chunks"));
      }
    }
  }
}

// A total that is added up in another order differs in its last bit, which rounding to 16 bits
// hides in all but one of some ten thousand outputs: enough of them that it shows.
TEST(AttentionBitwiseTest, TrainingEqualsDecodeInManyElements) {
  const TestContext ctx(2);
  const AttentionCase in(DType::kFloat16, {32, 1, 64, {128}});
  EXPECT_TRUE(SameBits(RunPaged(ctx, in, 1, 2), TrainingForward(ctx, in), in.name()));
}

TEST(AttentionBitwiseTest, BitsDoNotDependOnThreadsOrTarget) {
  for (const DType dtype : test::kRealDTypes) {
    for (const AttentionShape& shape : Shapes()) {
      const AttentionCase in(dtype, shape);
      test::ExpectSameBitsOnEveryMachine(in.name(), [&](const ExecContext& ctx) {
        test::AttentionOutputs o = in.Run(ctx);
        std::vector<OwnedTensor> all;
        for (OwnedTensor* x : {&o.out, &o.lse, &o.dq, &o.dk, &o.dv}) all.push_back(std::move(*x));
        all.push_back(RunPaged(ctx, in, 25, 7));
        return all;
      });
    }
  }
}

TEST(AttentionBitwiseTest, SequenceDoesNotDependOnItsBatch) {
  const TestContext ctx(2);
  for (const DType dtype : test::kRealDTypes) {
    const AttentionCase all(dtype, {6, 3, 32, {50, 33, 45}});
    const test::AttentionOutputs together = all.Run(ctx);
    AttentionCase one(dtype, {6, 3, 32, {33}});
    for (auto [to, from] : {std::pair{&one.q, &all.q}, std::pair{&one.k, &all.k},
                            std::pair{&one.v, &all.v}, std::pair{&one.dout, &all.dout}}) {
      const ConstTensor rows = from->view().Rows(50, 33);
      std::memcpy(to->view().data(), rows.data(), rows.bytes());
    }
    const test::AttentionOutputs alone = one.Run(ctx);
    EXPECT_TRUE(SameBits(alone.out, together.out.view().Rows(50, 33), "out"));
    EXPECT_TRUE(SameBits(alone.dq, together.dq.view().Rows(50, 33), "dq"));
    EXPECT_TRUE(SameBits(alone.dk, together.dk.view().Rows(50, 33), "dk"));
    EXPECT_TRUE(SameBits(alone.dv, together.dv.view().Rows(50, 33), "dv"));
    for (int64_t h = 0; h < 6; ++h) {
      EXPECT_EQ(0, std::memcmp(alone.lse.view().as<float>() + h * 33,
                               together.lse.view().as<float>() + h * 128 + 50, 33 * sizeof(float)));
    }
  }
}

// Attention of the last query with its keys in two halves that are computed apart and then merged,
// as a kernel that splits the KV cache does: the same mathematics in another order.
std::vector<float> SplitOverKeys(const AttentionCase& in) {
  const int64_t tokens = in.shape.tokens(), width = in.shape.head_dim;
  const float* q = in.q.view().as<float>() + (tokens - 1) * width;
  struct Part {
    float largest = -HUGE_VALF;
    float sum = 0;
    std::vector<float> out;
  };
  const auto attend = [&](int64_t begin, int64_t end) {
    Part part;
    part.out.resize(static_cast<size_t>(width));
    std::vector<float> score;
    for (int64_t j = begin; j < end; ++j) {
      float s = 0;
      for (int64_t d = 0; d < width; ++d) {
        s = std::fma(q[d], in.k.view().as<float>()[j * width + d], s);
      }
      score.push_back(s * in.scale);
      part.largest = std::max(part.largest, score.back());
    }
    for (int64_t j = begin; j < end; ++j) {
      const float p = std::exp(score[static_cast<size_t>(j - begin)] - part.largest);
      part.sum += p;
      for (int64_t d = 0; d < width; ++d) {
        float& out = part.out[static_cast<size_t>(d)];
        out = std::fma(p, in.v.view().as<float>()[j * width + d], out);
      }
    }
    return part;
  };
  const Part a = attend(0, tokens / 2), b = attend(tokens / 2, tokens);
  const float largest = std::max(a.largest, b.largest);
  const float wa = std::exp(a.largest - largest), wb = std::exp(b.largest - largest);
  std::vector<float> out;
  for (size_t d = 0; d < a.out.size(); ++d) {
    out.push_back((a.out[d] * wa + b.out[d] * wb) / (a.sum * wa + b.sum * wb));
  }
  return out;
}

TEST(AttentionBitwiseTest, ReductionSplitOverKeysIsCaught) {
  const TestContext ctx;
  const AttentionCase in(DType::kFloat32, {1, 1, 32, {60}});
  const OwnedTensor whole = TrainingForward(ctx, in);
  const std::vector<float> split = SplitOverKeys(in);
  const ConstTensor got(split.data(), DType::kFloat32, {1, 1, 32});
  const ConstTensor want = whole.view().Rows(59, 1);
  EXPECT_TRUE(test::Close(got, want, tolerance::AttentionOut(DType::kFloat32), "split"));
  EXPECT_FALSE(SameBits(got, want, "split"));
}

}  // namespace
}  // namespace halfstep
