// SPDX-License-Identifier: Apache-2.0
// A paged key-value cache fed from an attention case, for the attention tests.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "kernels/ops/attention.h"
#include "tests/kernels/attention_case.h"
#include "tests/kernels/op_test.h"

namespace halfstep::test {

// A cache whose blocks are handed out in random order and start full of NaN.
class PagedCache {
 public:
  PagedCache(const AttentionCase& in, Random& random) : in_(in) {
    const AttentionShape& s = in.shape;
    int32_t blocks = 0;
    for (const int32_t length : s.lengths) {
      tables_.emplace_back();
      for (int32_t i = 0; i < length; i += kKvBlockTokens) tables_.back().push_back(blocks++);
      max_blocks_ = std::max(max_blocks_, tables_.back().size());
    }
    std::vector<int32_t> shuffled(static_cast<size_t>(blocks) + 3);
    std::iota(shuffled.begin(), shuffled.end(), 0);
    std::shuffle(shuffled.begin(), shuffled.end(), random.engine());
    for (auto& table : tables_) {
      for (int32_t& block : table) block = shuffled[static_cast<size_t>(block)];
    }
    const auto bytes = static_cast<int64_t>(KvBlockBytes(in.dtype, s.kv_heads, s.head_dim));
    keys_ = Zeros(DType::kUInt8, {blocks + 3, bytes});
    values_ = Zeros(DType::kUInt8, {blocks + 3, bytes});
    std::memset(keys_.view().data(), 0xff, keys_.view().bytes());
    std::memset(values_.view().data(), 0xff, values_.view().bytes());
  }

  // One engine step: sequence s gets its tokens [from[s], to[s]); their outputs go to `out`, which
  // has the packed layout of the training forward.
  void Step(const ExecContext& ctx, const std::vector<int32_t>& from,
            const std::vector<int32_t>& to, Tensor out) {
    const AttentionShape& shape = in_.shape;
    std::vector<int32_t> rows, slots, start = {0}, context, tables;
    int32_t first = 0;
    for (size_t s = 0; s < shape.lengths.size(); first += shape.lengths[s++]) {
      if (from[s] == to[s]) continue;
      for (int32_t t = from[s]; t < to[s]; ++t) {
        rows.push_back(first + t);
        slots.push_back(tables_[s][static_cast<size_t>(t / kKvBlockTokens)] * kKvBlockTokens +
                        t % kKvBlockTokens);
      }
      start.push_back(static_cast<int32_t>(rows.size()));
      context.push_back(to[s]);
      tables.insert(tables.end(), tables_[s].begin(), tables_[s].end());
      tables.resize(context.size() * max_blocks_, -1);
    }
    if (rows.empty()) return;
    const OwnedTensor q = Take(in_.q, rows), k = Take(in_.k, rows), v = Take(in_.v, rows);
    const OwnedTensor start_tensor = Ints(start), context_tensor = Ints(context);
    const OwnedTensor slot_tensor = Ints(slots), table_tensor = Ints(tables);
    const KvCacheLayer layer{keys_, values_, in_.dtype, shape.kv_heads, shape.head_dim};
    WriteKvCache(ctx, k, v, slot_tensor, layer);
    const PagedBatch batch{start_tensor, context_tensor,
                           table_tensor.view().Reshape({static_cast<int64_t>(context.size()),
                                                        static_cast<int64_t>(max_blocks_)})};
    OwnedTensor y = Zeros(in_.dtype, q.view().shape());
    PagedCausalAttention(ctx, q, layer, batch, in_.scale, y);
    for (size_t i = 0; i < rows.size(); ++i) {
      const Tensor row = out.Rows(rows[i], 1);
      std::memcpy(row.data(), y.view().Rows(static_cast<int64_t>(i), 1).data(), row.bytes());
    }
  }

 private:
  static OwnedTensor Take(const OwnedTensor& x, const std::vector<int32_t>& rows) {
    const ConstTensor from = x.view();
    OwnedTensor y =
        Zeros(from.dtype(), {static_cast<int64_t>(rows.size()), from.dim(1), from.dim(2)});
    for (size_t i = 0; i < rows.size(); ++i) {
      const ConstTensor row = from.Rows(rows[i], 1);
      std::memcpy(y.view().Rows(static_cast<int64_t>(i), 1).data(), row.data(), row.bytes());
    }
    return y;
  }

  const AttentionCase& in_;
  std::vector<std::vector<int32_t>> tables_;
  size_t max_blocks_ = 1;
  OwnedTensor keys_, values_;
};

}  // namespace halfstep::test
