// SPDX-License-Identifier: Apache-2.0
// Token embedding: row copies forward, row sums in ascending token order backward.
#include "kernels/cpu/embedding.h"

#include <algorithm>
#include <cstring>

#include "kernels/check.h"
#include "kernels/cpu/parallel.h"
#include "kernels/dispatch_float.h"
#include "kernels/dispatch_or_float.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/embedding.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {
namespace {

constexpr int64_t kGrainElements = 65536;

void CheckTokens(ConstTensor tokens, int64_t vocabulary) {
  const int32_t* token = tokens.as<int32_t>();
  for (int64_t t = 0; t < tokens.dim(0); ++t) {
    HALFSTEP_CHECK_GE(token[t], 0);
    HALFSTEP_CHECK_LT(token[t], vocabulary);
  }
}

template <class T, class Y>
void CopyRow(const T* from, int64_t hidden, Y* to) {
  if constexpr (__is_same(T, Y)) {
    std::memcpy(to, from, static_cast<size_t>(hidden) * sizeof(T));
  } else {
    for (int64_t i = 0; i < hidden; i += 16) {
      const auto rest = static_cast<size_t>(hidden - i);
      Store16(Load16(from + i, rest), to + i, rest);
    }
  }
}

void EmbeddingImpl(const ExecContext& ctx, ConstTensor tokens, ConstTensor table, Tensor y) {
  CheckTokens(tokens, table.dim(0));
  const int64_t hidden = table.dim(1);
  const int32_t* token = tokens.as<int32_t>();
  DispatchFloat(table.dtype(), [&]<class T>() {
    DispatchOrFloat<T>(y.dtype(), [&]<class Y>() {
      const T* from = table.as<T>();
      Y* to = y.as<Y>();
      ParallelRanges(ctx, tokens.dim(0), kGrainElements / std::max<int64_t>(hidden, 1),
                     [=](int64_t begin, int64_t end, int) {
                       for (int64_t t = begin; t < end; ++t) {
                         CopyRow(from + token[t] * hidden, hidden, to + t * hidden);
                       }
                     });
    });
  });
}

void EmbeddingBackwardImpl(const ExecContext& ctx, ConstTensor dy, ConstTensor tokens,
                           Tensor dtable) {
  CheckTokens(tokens, dtable.dim(0));
  const int64_t hidden = dtable.dim(1);
  const int64_t count = tokens.dim(0);
  const int32_t* token = tokens.as<int32_t>();
  float* sums = dtable.as<float>();
  DispatchFloat(dy.dtype(), [&]<class T>() {
    const T* from = dy.as<T>();
    const int64_t vectors = (hidden + 15) / 16;
    // Threads divide the columns, so that each element's sum stays one chain over the tokens.
    ParallelRanges(ctx, vectors, kGrainElements / std::max<int64_t>(16 * count, 1),
                   [=](int64_t begin, int64_t end, int) {
                     const int64_t last = std::min(end * 16, hidden);
                     for (int64_t t = 0; t < count; ++t) {
                       const T* row = from + t * hidden;
                       float* sum = sums + token[t] * hidden;
                       for (int64_t i = begin * 16; i < last; i += 16) {
                         const size_t rest = static_cast<size_t>(last - i);
                         Store16(Load16(sum + i, rest) + Load16(row + i, rest), sum + i, rest);
                       }
                     }
                   });
  });
}

}  // namespace
}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfstep::cpu {

HWY_EXPORT(EmbeddingImpl);
void Embedding(const ExecContext& ctx, ConstTensor tokens, ConstTensor table, Tensor y) {
  HWY_DYNAMIC_DISPATCH(EmbeddingImpl)(ctx, tokens, table, y);
}

HWY_EXPORT(EmbeddingBackwardImpl);
void EmbeddingBackward(const ExecContext& ctx, ConstTensor dy, ConstTensor tokens, Tensor dtable) {
  HWY_DYNAMIC_DISPATCH(EmbeddingBackwardImpl)(ctx, dy, tokens, dtable);
}

}  // namespace halfstep::cpu
#endif
