// SPDX-License-Identifier: Apache-2.0
// Copies of bytes, columns and rows: no arithmetic, so no vector code of our own.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/parallel.h"

namespace halfstep::cpu {
namespace {

constexpr int64_t kGrainBytes = 131072;

int64_t RowBytes(ConstTensor x) { return x.dim(1) * static_cast<int64_t>(SizeOf(x.dtype())); }

int64_t GrainRows(int64_t row_bytes) { return kGrainBytes / std::max<int64_t>(row_bytes, 1); }

}  // namespace

void Copy(const ExecContext& ctx, ConstTensor x, Tensor y) {
  const char* from = static_cast<const char*>(x.data());
  char* to = static_cast<char*>(y.data());
  ParallelRanges(ctx, static_cast<int64_t>(y.bytes()), kGrainBytes,
                 [=](int64_t begin, int64_t end, int) {
                   std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin));
                 });
}

void FillZero(const ExecContext& ctx, Tensor y) {
  char* to = static_cast<char*>(y.data());
  ParallelRanges(ctx, static_cast<int64_t>(y.bytes()), kGrainBytes,
                 [=](int64_t begin, int64_t end, int) {
                   std::memset(to + begin, 0, static_cast<size_t>(end - begin));
                 });
}

void SplitColumns(const ExecContext& ctx, ConstTensor x, std::span<const Tensor> outs) {
  const int64_t row = RowBytes(x);
  ParallelRanges(ctx, x.dim(0), GrainRows(row), [=](int64_t begin, int64_t end, int) {
    const char* from = static_cast<const char*>(x.data());
    for (const Tensor& out : outs) {
      const int64_t bytes = RowBytes(out);
      char* to = static_cast<char*>(out.data());
      for (int64_t r = begin; r < end; ++r) {
        std::memcpy(to + r * bytes, from + r * row, static_cast<size_t>(bytes));
      }
      from += bytes;
    }
  });
}

void ConcatColumns(const ExecContext& ctx, std::span<const ConstTensor> ins, Tensor y) {
  const int64_t row = RowBytes(y);
  ParallelRanges(ctx, y.dim(0), GrainRows(row), [=](int64_t begin, int64_t end, int) {
    char* to = static_cast<char*>(y.data());
    for (const ConstTensor& in : ins) {
      const int64_t bytes = RowBytes(in);
      const char* from = static_cast<const char*>(in.data());
      for (int64_t r = begin; r < end; ++r) {
        std::memcpy(to + r * row, from + r * bytes, static_cast<size_t>(bytes));
      }
      to += bytes;
    }
  });
}

void GatherRows(const ExecContext& ctx, ConstTensor x, ConstTensor rows, Tensor y) {
  const int64_t row = RowBytes(x);
  const int32_t* index = rows.as<int32_t>();
  for (int64_t i = 0; i < rows.dim(0); ++i) {
    HALFSTEP_CHECK_GE(index[i], 0);
    HALFSTEP_CHECK_LT(index[i], x.dim(0));
  }
  const char* from = static_cast<const char*>(x.data());
  char* to = static_cast<char*>(y.data());
  ParallelRanges(ctx, rows.dim(0), GrainRows(row), [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(to + i * row, from + index[i] * row, static_cast<size_t>(row));
    }
  });
}

void ScatterRows(const ExecContext& ctx, ConstTensor x, ConstTensor rows, Tensor y) {
  const int64_t row = RowBytes(y);
  const int32_t* index = rows.as<int32_t>();
  const int64_t count = rows.dim(0);
  for (int64_t i = 0; i < count; ++i) {
    HALFSTEP_CHECK_GT(index[i], i == 0 ? -1 : index[i - 1]);
    HALFSTEP_CHECK_LT(index[i], y.dim(0));
  }
  const char* from = static_cast<const char*>(x.data());
  char* to = static_cast<char*>(y.data());
  // Each range writes its own rows of y: zeros up to the next row that x has, then that row.
  ParallelRanges(ctx, y.dim(0), GrainRows(row), [=](int64_t begin, int64_t end, int) {
    int64_t i = std::lower_bound(index, index + count, begin) - index;
    for (int64_t r = begin; r < end;) {
      const int64_t next = i < count ? std::min<int64_t>(index[i], end) : end;
      std::memset(to + r * row, 0, static_cast<size_t>((next - r) * row));
      if (next == end) break;
      std::memcpy(to + next * row, from + i * row, static_cast<size_t>(row));
      r = next + 1;
      ++i;
    }
  });
}

}  // namespace halfstep::cpu
