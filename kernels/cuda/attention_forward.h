// SPDX-License-Identifier: Apache-2.0
// The arguments of forward attention kernels, packed and paged, and what the kernels of 16-bit and
// FP32 elements share. Scores are kept times log2(e), so that exp is a power of two.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/device_code.h"
#include "kernels/exec_context.h"

namespace halfstep::cuda {

// Keys of one step of the online softmax of 16-bit elements, two pages of the cache.
inline constexpr int kKeyBlock = 64;

// How the keys of single queries are divided, in the fast profile: parts of `blocks` key blocks
// each, at most `most` of them. A part leaves its unnormalised sums, the largest score and the
// total, in that order, for MergeParts.
struct KeySplit {
  int most = 1;
  int blocks = 0;
  Pointer<float> partials;  // [sequences, most, heads, row_floats]
  int row_floats = 0;

  HALFSTEP_DEVICE int Parts(int tokens, int context) const {
    if (most == 1 || tokens != 1) return 1;
    const int keys = blocks * kKeyBlock;
    return (context + keys - 1) / keys;
  }
  HALFSTEP_DEVICE int64_t Offset(int sequence, int part, int heads, int head) const {
    return ((int64_t{sequence} * most + part) * heads + head) * row_floats;
  }
};

template <class T>
struct AttentionArguments {
  Pointer<const T> q;
  Pointer<T> out;
  Pointer<float> lse;  // [heads, tokens]; empty where paged
  QueryRows rows;
  KeyValues<T> kv;
  Pointer<const int32_t> start;    // [sequences + 1] of the queries
  Pointer<const int32_t> context;  // [sequences]; empty: as many as queries
  int sequences;
  int tokens;  // of all queries
  float scale_log2;
  bool q_aligned;   // rows of q and out can be accessed 16 bytes at a time
  bool kv_aligned;  // and those of keys and values
  KeySplit split;
  Pointer<unsigned long long> saturation;

  HALFSTEP_DEVICE int Context(int sequence, int query_tokens) const {
    return context.empty() ? query_tokens : context[sequence];
  }
};

// The running softmax of one row.
struct SoftmaxRow {
  float largest = -BitsToFloat(0x7f800000);  // score so far, times log2(e)
  float total = 0;
};

// Puts attention on the stream, without the merge of split keys: 16-bit elements on tensor cores,
// FP32 without.
void Attend(const ExecContext& ctx, const AttentionArguments<Float16>& arguments);
void Attend(const ExecContext& ctx, const AttentionArguments<BFloat16>& arguments);
void Attend(const ExecContext& ctx, const AttentionArguments<float>& arguments);

}  // namespace halfstep::cuda
