// SPDX-License-Identifier: Apache-2.0
// Random packed attention inputs, and a paged cache filled from them, for the attention tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/ops/attention.h"
#include "tests/kernels/op_test.h"

namespace halfstep::test {

struct AttentionShape {
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  std::vector<int32_t> lengths;

  int64_t tokens() const { return std::accumulate(lengths.begin(), lengths.end(), int64_t{0}); }
};

struct AttentionOutputs {
  AttentionOutputs(DType dtype, DType lse_dtype, const AttentionShape& s)
      : out(Zeros(dtype, {s.tokens(), s.heads, s.head_dim})),
        lse(Zeros(lse_dtype, {s.heads, s.tokens()})),
        dq(Zeros(dtype, {s.tokens(), s.heads, s.head_dim})),
        dk(Zeros(dtype, {s.tokens(), s.kv_heads, s.head_dim})),
        dv(Zeros(dtype, {s.tokens(), s.kv_heads, s.head_dim})) {}
  OwnedTensor out, lse, dq, dk, dv;
};

struct AttentionCase {
  AttentionCase(DType type, AttentionShape s, uint64_t seed = 1)
      : shape(std::move(s)), dtype(type) {
    Random random(seed);
    const int64_t tokens = shape.tokens();
    q = random.Normal(dtype, {tokens, shape.heads, shape.head_dim});
    k = random.Normal(dtype, {tokens, shape.kv_heads, shape.head_dim});
    v = random.Normal(dtype, {tokens, shape.kv_heads, shape.head_dim});
    dout = random.Normal(dtype, {tokens, shape.heads, shape.head_dim});
    std::vector<int32_t> starts = {0};
    for (const int32_t length : shape.lengths) starts.push_back(starts.back() + length);
    cu_seqlens = Ints(starts);
    scale = 1 / std::sqrt(static_cast<float>(shape.head_dim));
  }

  PackedAttention packed() const { return {q, k, v, cu_seqlens, scale}; }

  AttentionOutputs Run(const ExecContext& ctx) const {
    AttentionOutputs o(dtype, DType::kFloat32, shape);
    CausalAttention(ctx, packed(), o.out, o.lse);
    CausalAttentionBackward(ctx, dout, packed(), o.out, o.lse, o.dq, o.dk, o.dv);
    return o;
  }

  // The same values in fp64.
  AttentionCase InDouble() const {
    AttentionCase copy(DType::kFloat64, shape);
    copy.q = AsDouble(q);
    copy.k = AsDouble(k);
    copy.v = AsDouble(v);
    copy.dout = AsDouble(dout);
    copy.scale = scale;
    return copy;
  }

  std::string name() const {
    std::string text = std::string(Name(dtype)) + " heads " + std::to_string(shape.heads) + "/" +
                       std::to_string(shape.kv_heads) + " head_dim " +
                       std::to_string(shape.head_dim) + " lengths";
    for (const int32_t length : shape.lengths) text += " " + std::to_string(length);
    return text;
  }

  AttentionShape shape;
  DType dtype;
  OwnedTensor q, k, v, dout, cu_seqlens;
  float scale = 0;
};

}  // namespace halfstep::test
