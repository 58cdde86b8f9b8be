// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/log_prob.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/log_prob.cc"
#include "hwy/foreach_target.h"  // must come before highway.h

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/log_softmax-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/dispatch_float.h"
#include "kernels/workspace.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

void LogProbRowsImpl(const ExecContext& ctx, ConstTensor logits, const int32_t* targets,
                     float inverse_temperature, float* log_probs, float* entropy, float* lse) {
  const int64_t vocab = logits.dim(1);
  ParallelRanges(ctx, logits.dim(0), std::max<int64_t>(1, 16384 / vocab),
                 [&](int64_t begin, int64_t end, int) {
                   for (int64_t r = begin; r < end; ++r) {
                     const float* const row = logits.as<float>() + r * vocab;
                     const LogSoftmax stats = ReduceLogits(row, vocab, inverse_temperature);
                     log_probs[r] = stats.LogProb(row[targets[r]]);
                     if (entropy != nullptr) entropy[r] = stats.Entropy();
                     if (lse != nullptr) lse[r] = stats.LogSumExp();
                   }
                 });
}

// What one row of logits has a gradient from.
struct RowLoss {
  float dlog_prob = 0;
  float entropy_weight = 0;  // of -H
  float entropy = 0;
};

// dlogits = dlog_prob * (1[target] - p) / temperature, rounded once.
template <class T>
void GradientRow(const float* logits, int64_t vocab, float inverse_temperature, float lse,
                 float dlog_prob, int32_t target, T* dlogits) {
  const F32x16 scale = Set16(inverse_temperature), shift = Set16(lse);
  const float factor = dlog_prob * inverse_temperature;
  const F32x16 negative = Set16(-factor);
  for (int64_t i = 0; i < vocab; i += 16) {
    const auto used = static_cast<size_t>(std::min<int64_t>(16, vocab - i));
    const F32x16 p = Exp(Load16(logits + i, used) * scale - shift);
    Store16(p * negative, dlogits + i, used);
  }
  const float p = ExpOne(logits[target] * inverse_temperature - lse);
  Store16(Set16(factor * (1.0f - p)), dlogits + target, 1);
}

// The same with weight * p * (log p + H) / temperature added before the rounding.
template <class T>
void GradientRowWithEntropy(const float* logits, int64_t vocab, float inverse_temperature,
                            float lse, const RowLoss& loss, int32_t target, T* dlogits) {
  const F32x16 scale = Set16(inverse_temperature), shift = Set16(lse);
  const float factor = loss.dlog_prob * inverse_temperature;
  const float weight = loss.entropy_weight * inverse_temperature;
  const F32x16 negative = Set16(-factor), weights = Set16(weight), entropy = Set16(loss.entropy);
  for (int64_t i = 0; i < vocab; i += 16) {
    const auto used = static_cast<size_t>(std::min<int64_t>(16, vocab - i));
    const F32x16 log_p = Load16(logits + i, used) * scale - shift;
    const F32x16 p = Exp(log_p);
    Store16(p * negative + p * (log_p + entropy) * weights, dlogits + i, used);
  }
  const float log_p = logits[target] * inverse_temperature - lse;
  const float p = ExpOne(log_p);
  Store16(Set16(factor * (1.0f - p) + p * (log_p + loss.entropy) * weight), dlogits + target, 1);
}

void GradientRowsImpl(const ExecContext& ctx, ConstTensor logits, const int32_t* targets,
                      float inverse_temperature, const float* lse, const float* dlog_probs,
                      const EntropyTerm& entropy_term, Tensor dlogits) {
  const int64_t vocab = logits.dim(1);
  const bool with_entropy = !entropy_term.weights.empty();
  const float* const weights = with_entropy ? entropy_term.weights.as<float>() : nullptr;
  const float* const entropies = with_entropy ? entropy_term.entropy.as<float>() : nullptr;
  DispatchFloat(dlogits.dtype(), [&]<class T>() {
    ParallelRanges(
        ctx, logits.dim(0), std::max<int64_t>(1, 16384 / vocab),
        [&](int64_t begin, int64_t end, int) {
          for (int64_t r = begin; r < end; ++r) {
            const float* const row = logits.as<float>() + r * vocab;
            T* const out = dlogits.as<T>() + r * vocab;
            const float weight = with_entropy ? weights[r] : 0;
            if (weight == 0) {
              GradientRow(row, vocab, inverse_temperature, lse[r], dlog_probs[r], targets[r], out);
            } else {
              GradientRowWithEntropy(row, vocab, inverse_temperature, lse[r],
                                     {dlog_probs[r], weight, entropies[r]}, targets[r], out);
            }
          }
        });
  });
}

}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfstep::cpu {
namespace {

HWY_EXPORT(LogProbRowsImpl);
HWY_EXPORT(GradientRowsImpl);

// Rows whose FP32 logits exist at a time: enough for an efficient product, few enough to stay
// small.
int64_t ChunkRows(int64_t vocab) {
  constexpr int64_t kLogits = 256 * 1024, kFewestRows = 64;
  return std::max(kFewestRows, kLogits / vocab);
}

void CheckTargets(ConstTensor targets, int64_t vocab) {
  for (int64_t r = 0; r < targets.elements(); ++r) {
    const int32_t target = targets.as<int32_t>()[r];
    HALFSTEP_CHECK(target >= 0 && target < vocab);
  }
}

}  // namespace

void LmHeadLogProb(const ExecContext& ctx, ConstTensor hidden, const LinearWeight& head,
                   ConstTensor targets, float temperature, Tensor log_probs, Tensor entropy,
                   Tensor lse) {
  const int64_t rows = hidden.dim(0), vocab = head.weight.dim(0);
  CheckTargets(targets, vocab);
  const int64_t chunk = std::min(rows, ChunkRows(vocab));
  Workspace::Scope scope(ctx.workspace);
  const Tensor logits = scope.Take(DType::kFloat32, {chunk, vocab});
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    const Tensor part = logits.Rows(0, count);
    cpu::Linear(ctx, hidden.Rows(begin, count), head, part);
    HWY_DYNAMIC_DISPATCH(LogProbRowsImpl)
    (ctx, part, targets.as<int32_t>() + begin, 1.0f / temperature, log_probs.as<float>() + begin,
     entropy.empty() ? nullptr : entropy.as<float>() + begin,
     lse.empty() ? nullptr : lse.as<float>() + begin);
  }
}

void LmHeadLogProbBackward(const ExecContext& ctx, ConstTensor dlog_probs, ConstTensor hidden,
                           const LinearWeight& head, ConstTensor targets, float temperature,
                           ConstTensor lse, Tensor dhidden, Tensor dhead,
                           const EntropyTerm& entropy_term) {
  const int64_t rows = hidden.dim(0), vocab = head.weight.dim(0);
  CheckTargets(targets, vocab);
  const int64_t chunk = std::min(rows, ChunkRows(vocab));
  Workspace::Scope scope(ctx.workspace);
  const Tensor logits = scope.Take(DType::kFloat32, {chunk, vocab});
  const Tensor dlogits = scope.Take(hidden.dtype(), {chunk, vocab});
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    const ConstTensor part = hidden.Rows(begin, count);
    cpu::Linear(ctx, part, head, logits.Rows(0, count));
    EntropyTerm term;
    if (!entropy_term.weights.empty()) {
      term = {entropy_term.weights.Rows(begin, count), entropy_term.entropy.Rows(begin, count)};
    }
    HWY_DYNAMIC_DISPATCH(GradientRowsImpl)
    (ctx, logits.Rows(0, count), targets.as<int32_t>() + begin, 1.0f / temperature,
     lse.as<float>() + begin, dlog_probs.as<float>() + begin, term, dlogits.Rows(0, count));
    cpu::LinearBackwardInput(ctx, dlogits.Rows(0, count), head, dhidden.Rows(begin, count));
    cpu::LinearBackwardWeight(ctx, dlogits.Rows(0, count), part, dhead, Tensor());
  }
}

}  // namespace halfstep::cpu
#endif  // HWY_ONCE
