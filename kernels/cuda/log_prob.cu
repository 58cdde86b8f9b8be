// SPDX-License-Identifier: Apache-2.0
// LM head in chunks of rows: the FP32 logits of a chunk are stored, then a block per row reduces
// them; the backward computes them again. Storing moves 8 bytes per logit, by calculation half the
// time of the product at a hidden size of 1 536 and a fifth at 4 096. A fused kernel would not move
// them, but was slower where it was measured (RL-Kernel's on an H100: 12.9 against 7.3 ms).
#include "kernels/ops/log_prob.h"

#include <algorithm>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/log_softmax.h"
#include "kernels/cuda/row_access.h"
#include "kernels/dispatch_float.h"
#include "kernels/workspace.h"

namespace halfstep::cuda {
namespace {

// Rows whose FP32 logits exist at a time. Each chunk of the backward reads and writes all of dhead,
// 8 bytes per element against 2 operations per row, which take twice as long at 2 048 rows. That is
// 1 GiB of workspace at a vocabulary of 128 Ki. A multiple of 16, so chunks change no bit of dhead.
int64_t ChunkRows(int64_t vocab) {
  constexpr int64_t kLogits = int64_t{1} << 28, kMostRows = 2048, kMultiple = 16;
  const int64_t rows = std::min(kMostRows, kLogits / vocab);
  return std::max(kMultiple, rows / kMultiple * kMultiple);
}

// What the forward keeps of each row; entropy and lse may be empty.
struct RowResults {
  Pointer<float> log_probs, entropy, lse;
};

template <bool aligned>
HALFSTEP_KERNEL void LogProbRows(int vocab, float inverse_temperature, Pointer<const float> logits,
                                 Pointer<const int32_t> targets, RowResults results) {
  const int row = BlockX();
  const Pointer<const float> values = logits + int64_t{row} * vocab;
  const LogSoftmax stats = ReduceLogits<aligned>(values, vocab, inverse_temperature,
                                                 [](int, const float(&)[kRowPack], int) {});
  if (ThreadIndex() != 0) return;
  results.log_probs[row] = stats.LogProb(values[targets[row]]);
  if (!results.entropy.empty()) results.entropy[row] = stats.Entropy();
  if (!results.lse.empty()) results.lse[row] = stats.LogSumExp();
}

// What each row of logits has a gradient from; the last two may be empty.
struct RowLosses {
  Pointer<const int32_t> targets;
  Pointer<const float> lse, dlog_probs;
  Pointer<const float> entropy_weights, entropy;
};

constexpr int kGradientThreads = 128;
constexpr int kGradientGroups = 4;  // of each thread
constexpr int kGradientColumns = kGradientThreads * kGradientGroups * kGroup;

// A block per row and kGradientColumns columns; element by element, so dlogits may be the memory of
// FP32 logits.
template <bool aligned, class T>
HALFSTEP_KERNEL void GradientRows(int vocab, float inverse_temperature, Pointer<const float> logits,
                                  RowLosses losses, Pointer<T> dlogits) {
  const int row = BlockY();
  const Pointer<const float> from = logits + int64_t{row} * vocab;
  const Pointer<T> to = dlogits + int64_t{row} * vocab;
  const int target = losses.targets[row];
  const float lse = losses.lse[row];
  const float factor = losses.dlog_probs[row] * inverse_temperature;
  const float weight =
      losses.entropy_weights.empty() ? 0.0f : losses.entropy_weights[row] * inverse_temperature;
  const float entropy = losses.entropy.empty() ? 0.0f : losses.entropy[row];
  const int first = BlockX() * kGradientColumns + ThreadIndex() * kGroup;
  for (int part = 0; part < kGradientGroups; ++part) {
    const int i = first + part * kGradientThreads * kGroup;
    if (i >= vocab) return;
    float v[kGroup];
    LoadGroup<aligned>(from, i, vocab - i, v);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const float log_p = v[j] * inverse_temperature - lse;
      const float p = Exp(log_p);
      v[j] = i + j == target ? factor * (1.0f - p) : p * -factor;
      if (weight != 0) v[j] += p * (log_p + entropy) * weight;
    }
    StoreGroup<aligned>(to, i, vocab - i, v, [](float value) { return Round<T>(value); });
  }
}

template <class T>
void GradientOf(const ExecContext& ctx, ConstTensor logits, float inverse_temperature,
                const RowLosses& losses, Tensor dlogits) {
  const int64_t rows = logits.dim(0), vocab = logits.dim(1);
  const auto from = PointerTo<const float>(logits);
  const auto to = PointerTo<T>(dlogits);
  const bool aligned = RowsAreAligned(from, vocab) && RowsAreAligned(to, vocab);
  Launch(ctx,
         {"LmHeadLogProbBackward", CeilDivide(vocab, kGradientColumns), rows, kGradientThreads},
         aligned ? GradientRows<true, T> : GradientRows<false, T>, static_cast<int>(vocab),
         inverse_temperature, from, losses, to);
}

// Rows [begin, begin + count) of a tensor that may be empty.
template <class Byte>
BasicTensor<Byte> RowsOf(BasicTensor<Byte> tensor, int64_t begin, int64_t count) {
  return tensor.empty() ? tensor : tensor.Rows(begin, count);
}

}  // namespace

void LmHeadLogProb(const ExecContext& ctx, ConstTensor hidden, const LinearWeight& head,
                   ConstTensor targets, float temperature, Tensor log_probs, Tensor entropy,
                   Tensor lse) {
  const int64_t rows = hidden.dim(0), vocab = head.weight.dim(0);
  const int64_t chunk = std::min(rows, ChunkRows(vocab));
  Workspace::Scope scope(ctx.workspace);
  const Tensor logits = scope.Take(DType::kFloat32, {chunk, vocab});
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    const Tensor part = logits.Rows(0, count);
    cuda::Linear(ctx, hidden.Rows(begin, count), head, part);
    const auto values = PointerTo<const float>(part);
    const RowResults results{PointerTo<float>(log_probs.Rows(begin, count)),
                             PointerTo<float>(RowsOf(entropy, begin, count)),
                             PointerTo<float>(RowsOf(lse, begin, count))};
    Launch(ctx, {"LmHeadLogProb", count, 1, RowThreads(vocab), kLogSoftmaxBytes},
           RowsAreAligned(values, vocab) ? LogProbRows<true> : LogProbRows<false>,
           static_cast<int>(vocab), 1.0f / temperature, values,
           PointerTo<const int32_t>(targets.Rows(begin, count)), results);
  }
}

void LmHeadLogProbBackward(const ExecContext& ctx, ConstTensor dlog_probs, ConstTensor hidden,
                           const LinearWeight& head, ConstTensor targets, float temperature,
                           ConstTensor lse, Tensor dhidden, Tensor dhead,
                           const EntropyTerm& entropy_term) {
  const int64_t rows = hidden.dim(0), vocab = head.weight.dim(0);
  const int64_t chunk = std::min(rows, ChunkRows(vocab));
  Workspace::Scope scope(ctx.workspace);
  const Tensor logits = scope.Take(DType::kFloat32, {chunk, vocab});
  const Tensor dlogits =
      hidden.dtype() == DType::kFloat32 ? logits : scope.Take(hidden.dtype(), {chunk, vocab});
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    const ConstTensor part = hidden.Rows(begin, count);
    const Tensor gradient = dlogits.Rows(0, count);
    cuda::Linear(ctx, part, head, logits.Rows(0, count));
    const auto rows_of = [&](ConstTensor x) {
      return PointerTo<const float>(RowsOf(x, begin, count));
    };
    const RowLosses losses{PointerTo<const int32_t>(targets.Rows(begin, count)), rows_of(lse),
                           rows_of(dlog_probs), rows_of(entropy_term.weights),
                           rows_of(entropy_term.entropy)};
    DispatchFloat(hidden.dtype(), [&]<class T>() {
      GradientOf<T>(ctx, logits.Rows(0, count), 1.0f / temperature, losses, gradient);
    });
    cuda::LinearBackwardInput(ctx, gradient, head, dhidden.Rows(begin, count));
    cuda::LinearBackwardWeight(ctx, gradient, part, dhead, Tensor());
  }
}

}  // namespace halfstep::cuda
