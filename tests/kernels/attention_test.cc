// SPDX-License-Identifier: Apache-2.0
// Attention against the specification. That its three paths agree bit for bit is in
// attention_bitwise_test.cc.
#include "kernels/ops/attention.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/reference/attention.h"
#include "tests/kernels/attention_case.h"
#include "tests/kernels/op_test.h"
#include "tests/kernels/paged_cache.h"

namespace halfstep {
namespace {

using test::AsDouble;
using test::AttentionCase;
using test::AttentionShape;
using test::Close;
using test::TestContext;
using test::Zeros;

const std::vector<AttentionShape>& Shapes() {
  static const std::vector<AttentionShape> shapes = {
      {2, 2, 16, {1, 3}},  {4, 2, 16, {45, 33}}, {2, 1, 8, {31, 32, 33, 1}}, {4, 1, 24, {65, 0, 7}},
      {3, 3, 32, {64, 2}}, {8, 2, 40, {37}},     {6, 3, 64, {50, 97}},       {2, 1, 80, {40}},
      {2, 2, 96, {66}},    {5, 1, 128, {35, 5}}, {2, 1, 136, {9}},           {4, 2, 32, {}},
      {4, 2, 15, {34, 9}},
  };
  return shapes;
}

TEST(CausalAttentionTest, MatchesReferenceForEveryDTypeAndShape) {
  const TestContext ctx;
  for (const DType dtype : test::kRealDTypes) {
    for (const AttentionShape& shape : Shapes()) {
      const AttentionCase in(dtype, shape);
      const std::string name = in.name();
      const test::AttentionOutputs got = in.Run(ctx);

      const AttentionCase exact = in.InDouble();
      test::AttentionOutputs want(DType::kFloat64, DType::kFloat64, shape);
      reference::CausalAttention(exact.packed(), want.out, want.lse);
      reference::CausalAttentionBackward(exact.dout, exact.packed(), want.dq, want.dk, want.dv);

      const double slack = shape.tokens() < 10 ? 2 : 1;  // few elements: bounds, not averages
      EXPECT_TRUE(Close(got.out, want.out, slack * tolerance::AttentionOut(dtype), name + " out"));
      EXPECT_TRUE(Close(got.lse, want.lse, tolerance::kAttentionLse, name + " lse",
                        test::Distance::kAbsolute));
      const double gradient = slack * tolerance::AttentionGradient(dtype);
      EXPECT_TRUE(Close(got.dq, want.dq, gradient, name + " dq"));
      EXPECT_TRUE(Close(got.dk, want.dk, gradient, name + " dk"));
      EXPECT_TRUE(Close(got.dv, want.dv, gradient, name + " dv"));
    }
  }
}

TEST(CausalAttentionTest, ReferenceMatchesFiniteDifferences) {
  AttentionCase in(DType::kFloat64, {4, 2, 3, {1, 5}});
  test::AttentionOutputs out(DType::kFloat64, DType::kFloat64, in.shape);
  reference::CausalAttentionBackward(in.dout, in.packed(), out.dq, out.dk, out.dv);
  const auto loss = [&] {
    reference::CausalAttention(in.packed(), out.out, Tensor());
    return test::Inner(out.out, in.dout);
  };
  EXPECT_TRUE(test::MatchesFiniteDifference(loss, in.q, out.dq, "dq"));
  EXPECT_TRUE(test::MatchesFiniteDifference(loss, in.k, out.dk, "dk"));
  EXPECT_TRUE(test::MatchesFiniteDifference(loss, in.v, out.dv, "dv"));
}

TEST(CausalAttentionTest, LargeScoresStayFinite) {
  const TestContext ctx;
  AttentionCase in(DType::kFloat16, {2, 1, 32, {70}});
  in.scale = 40;  // scores of magnitude 200 and more: exp overflows unless the maximum is taken off
  const test::AttentionOutputs got = in.Run(ctx);
  const AttentionCase exact = in.InDouble();
  test::AttentionOutputs want(DType::kFloat64, DType::kFloat64, in.shape);
  reference::CausalAttention(exact.packed(), want.out, want.lse);
  EXPECT_TRUE(Close(got.out, want.out, tolerance::AttentionOut(DType::kFloat16), "out"));
}

TEST(CausalAttentionTest, GradientOverflowReachesTheCaller) {
  const TestContext ctx;
  AttentionCase in(DType::kFloat16, {2, 1, 32, {40}});
  for (int64_t i = 0; i < in.dout.view().elements(); ++i) test::StoreDouble(in.dout, i, 65504);
  const test::AttentionOutputs out = in.Run(ctx);
  EXPECT_TRUE(std::isinf(test::LoadDouble(out.dv, 0)));
  EXPECT_EQ(ctx.saturated(), 0);
}

TEST(CausalAttentionTest, NotANumberStaysInItsSequenceAndAfterItsPosition) {
  const TestContext ctx;
  AttentionCase in(DType::kFloat16, {2, 1, 32, {75, 40}});
  const test::AttentionOutputs clean = in.Run(ctx);
  // Value of token 70 of the first sequence: seen by queries 70 to 74 of that sequence only; CUDA
  // lets it reach those from the beginning of its block of 64 keys on.
  const int64_t first = Many(70, 64);
  in.v.view().as<Float16>()[70 * 32 + 3].bits = 0x7e00;
  const test::AttentionOutputs out = in.Run(ctx);
  for (int64_t t = 0; t < 115; ++t) {
    for (int64_t i = t * 64; i < t * 64 + 64; ++i) {
      const bool poisoned = t >= first && t < 75 && i % 32 == 3;
      EXPECT_EQ(std::isnan(test::LoadDouble(out.out, i)), poisoned) << t << " " << i;
      if (!poisoned) {
        EXPECT_EQ(test::LoadDouble(out.out, i), test::LoadDouble(clean.out, i));
      }
    }
  }
}

// With contexts of one, two and more parts. The reference takes nearly all of the time, so what is
// long has few heads.
const std::vector<AttentionShape>& LongShapes() {
  static const std::vector<AttentionShape> shapes = {
      {4, 2, 32, {530, 256, 257, 3}},
      {10, 2, 64, {515}},
      {3, 3, 24, {300, 1030}},
      {12, 1, 16, {513}},
  };
  static const std::vector<AttentionShape> emulated = {
      {2, 1, 32, {258, 256, 3}},
      {5, 1, 64, {259}},
      {1, 1, 24, {40, 530}},
  };
  return kEmulated ? emulated : shapes;
}

// The whole context as one prefill, and its last tokens one by one.
TEST(PagedAttentionTest, FastProfileMatchesReferenceWithSplitKeys) {
  for (const DType dtype : test::kRealDTypes) {
    for (const AttentionShape& shape : LongShapes()) {
      const AttentionCase in(dtype, shape);
      const AttentionCase exact = in.InDouble();
      test::AttentionOutputs want(DType::kFloat64, DType::kFloat64, shape);
      reference::CausalAttention(exact.packed(), want.out, want.lse);
      for (int threads = 1; threads <= Many(3, 1); threads += 2) {
        const TestContext ctx(threads, Profile::kFast);
        test::Random random(5);
        test::PagedCache cache(in, random);
        OwnedTensor out = Zeros(dtype, in.q.view().shape());
        std::vector<int32_t> from(shape.lengths.size(), 0), to;
        for (const int32_t length : shape.lengths) to.push_back(std::max(1, length - 3));
        cache.Step(ctx, from, to, out);
        while (to != shape.lengths) {
          from = to;
          for (size_t s = 0; s < to.size(); ++s) to[s] = std::min(to[s] + 1, shape.lengths[s]);
          cache.Step(ctx, from, to, out);
        }
        EXPECT_TRUE(Close(out, want.out, tolerance::AttentionOut(dtype), in.name()));
      }
    }
  }
}

// A split must not be what the bitwise profile computes, or nothing was split.
TEST(PagedAttentionTest, FastProfileSplitsTheKeysOfALongContext) {
  const auto tokens = static_cast<int32_t>(Many(600, 270));
  const AttentionCase in(DType::kFloat32, {4, 2, 32, {tokens}});
  const auto last_row = [&](Profile profile) {
    const TestContext ctx(1, profile);
    test::Random random(6);
    test::PagedCache cache(in, random);
    OwnedTensor out = Zeros(DType::kFloat32, in.q.view().shape());
    cache.Step(ctx, {0}, {tokens - 1}, out);
    cache.Step(ctx, {tokens - 1}, {tokens}, out);
    return out;
  };
  const OwnedTensor fast = last_row(Profile::kFast), bitwise = last_row(Profile::kBitwise);
  EXPECT_FALSE(
      test::SameBits(fast.view().Rows(tokens - 1, 1), bitwise.view().Rows(tokens - 1, 1), "split"));
  EXPECT_TRUE(
      test::SameBits(fast.view().Rows(0, tokens - 1), bitwise.view().Rows(0, tokens - 1), "whole"));
}

}  // namespace
}  // namespace halfstep
