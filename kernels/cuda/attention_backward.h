// SPDX-License-Identifier: Apache-2.0
// The arguments of the kernels of attention backward, which recompute probabilities from the saved
// log-sum-exp:
//   p = exp(score - lse), ds = p (dout v - delta), delta = sum over columns of dout * out,
//   dv += p dout, dk += scale ds q, dq += scale ds k.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/device_code.h"
#include "kernels/exec_context.h"

namespace halfstep::cuda {

// What a row of the queries brings besides its vectors, [kv_heads, tokens, group]: in the order in
// which the rows of a sequence are numbered.
struct RowStatistics {
  Pointer<float> lse_log2;  // lse times log2(e)
  Pointer<float> delta;
  int64_t tokens;

  HALFSTEP_DEVICE int64_t Index(int kv_head, int begin, int group, int row) const {
    return (kv_head * tokens + begin) * group + row;
  }
};

template <class T>
struct AttentionGradients {
  Pointer<const T> q;
  Pointer<const T> dout;
  QueryRows rows;
  KeyValues<T> kv;  // packed
  RowStatistics statistics;
  Pointer<const int32_t> start;  // [sequences + 1]
  int sequences;
  float scale;
  bool aligned;  // all rows can be accessed 16 bytes at a time
  Pointer<T> dq;
  Pointer<T> dk;
  Pointer<T> dv;
};

// Put the gradients on the stream: those of 16-bit elements on tensor cores, FP32 without.
void AttendBackward(const ExecContext& ctx, const AttentionGradients<Float16>& gradients);
void AttendBackward(const ExecContext& ctx, const AttentionGradients<BFloat16>& gradients);
void AttendBackward(const ExecContext& ctx, const AttentionGradients<float>& gradients);

}  // namespace halfstep::cuda
