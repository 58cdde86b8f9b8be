// SPDX-License-Identifier: Apache-2.0
// One row at a time: log-softmax, optional cuts, then the largest of z + Gumbel noise.
#include "kernels/cpu/sampling.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sampling.cc"
#include "hwy/foreach_target.h"  // must come before highway.h

#include <algorithm>

#include "kernels/cpu/log_softmax-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/philox.h"
#include "kernels/workspace.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

// Ids whose noise one call of GumbelNoise makes: 16 counters of four words.
inline constexpr int64_t kNoiseIds = 64;

// Scratch of one thread, `padded` (a multiple of kNoiseIds) elements each.
struct SampleScratch {
  float* z;            // logits / temperature; -inf for ids that were cut and past the end
  float* probability;  // relative to the most probable id
  int32_t* order;      // ids
};

// high and low halves of a[i] * factor.
HWY_INLINE void MultiplyWide(hn::Vec<U32> a, uint32_t factor, hn::Vec<U32>* high,
                             hn::Vec<U32>* low) {
  const hn::RepartitionToWide<U32> wide;
  const auto b = hn::Set(kU32, factor);
  const auto even = hn::MulEven(a, b);
  const auto odd = hn::MulEven(hn::BitCast(kU32, hn::ShiftRight<32>(hn::BitCast(wide, a))), b);
  *low = hn::OddEven(hn::BitCast(kU32, hn::ShiftLeft<32>(odd)), hn::BitCast(kU32, even));
  *high = hn::OddEven(hn::BitCast(kU32, odd), hn::BitCast(kU32, hn::ShiftRight<32>(even)));
}

// noise[i] = -log(-log(u)) of id `first + i`, first a multiple of kNoiseIds. The vector form of
// Philox4x32 (kernels/philox.h).
inline void GumbelNoise(const PhiloxKey& key, PhiloxCounter counter, int64_t first, float* noise) {
  alignas(64) uint32_t words[4][16];
  for (size_t p = 0; p < kParts; ++p) {
    const auto base = static_cast<uint32_t>(first / 4) + static_cast<uint32_t>(p * kPartLanes);
    auto c0 = hn::Iota(kU32, base);
    auto c1 = hn::Set(kU32, counter.word[1]);
    auto c2 = hn::Set(kU32, counter.word[2]);
    auto c3 = hn::Set(kU32, counter.word[3]);
    uint32_t k0 = key.word[0], k1 = key.word[1];
    for (int round = 0; round < 10; ++round) {
      hn::Vec<U32> high0, low0, high2, low2;
      MultiplyWide(c0, 0xD2511F53u, &high0, &low0);
      MultiplyWide(c2, 0xCD9E8D57u, &high2, &low2);
      c0 = hn::Xor(hn::Xor(high2, c1), hn::Set(kU32, k0));
      c2 = hn::Xor(hn::Xor(high0, c3), hn::Set(kU32, k1));
      c1 = low2;
      c3 = low0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    hn::StoreU(c0, kU32, words[0] + p * kPartLanes);
    hn::StoreU(c1, kU32, words[1] + p * kPartLanes);
    hn::StoreU(c2, kU32, words[2] + p * kPartLanes);
    hn::StoreU(c3, kU32, words[3] + p * kPartLanes);
  }
  for (int i = 0; i < kNoiseIds; ++i) noise[i] = UniformFromBits(words[i % 4][i / 4]);
  for (int i = 0; i < kNoiseIds; i += 16) {
    Store16(Neg(Log(Neg(Log(Load16(noise + i))))), noise + i);
  }
}

// The largest score seen in each lane and the lowest id that has it.
class LaneArgmax {
 public:
  LaneArgmax() : score_(Set16(-std::numeric_limits<float>::infinity())) {
    for (size_t p = 0; p < kParts; ++p) id_[p] = hn::Zero(kI32);
  }
  void Add(const F32x16& score, int64_t first_id) {
    for (size_t p = 0; p < kParts; ++p) {
      const auto better = hn::Gt(score.part[p], score_.part[p]);
      score_.part[p] = hn::IfThenElse(better, score.part[p], score_.part[p]);
      const auto id =
          hn::Iota(kI32, static_cast<int32_t>(first_id + static_cast<int64_t>(p * kPartLanes)));
      id_[p] = hn::IfThenElse(hn::RebindMask(kI32, better), id, id_[p]);
    }
  }
  int32_t Best() const {
    float scores[16];
    int32_t ids[16];
    Store16(score_, scores);
    for (size_t p = 0; p < kParts; ++p) hn::StoreU(id_[p], kI32, ids + p * kPartLanes);
    int best = 0;
    for (int i = 1; i < 16; ++i) {
      if (scores[i] > scores[best] || (scores[i] == scores[best] && ids[i] < ids[best])) best = i;
    }
    return ids[best];
  }

 private:
  F32x16 score_;
  hn::Vec<I32> id_[kParts];
};

// Writes -inf over the ids that top-k, top-p or min-p drops; each cut looks at the whole
// distribution.
inline void Cut(const SamplingRow& row, int64_t vocab, float max, const SampleScratch& scratch) {
  float* const z = scratch.z;
  float* const probability = scratch.probability;
  int32_t* const order = scratch.order;
  double total = 0;
  for (int64_t i = 0; i < vocab; i += 16) {
    Store16(Exp(Load16(z + i) - Set16(max)), probability + i);
  }
  for (int64_t i = 0; i < vocab; ++i) {
    total += probability[i];
    order[i] = static_cast<int32_t>(i);
  }
  const auto before = [z](int32_t a, int32_t b) { return z[a] != z[b] ? z[a] > z[b] : a < b; };

  int64_t kept = row.top_k > 0 ? std::min<int64_t>(row.top_k, vocab) : vocab;
  if (row.top_p < 1) {
    // The most probable ids are few as a rule, so ever longer prefixes are sorted.
    for (int64_t sorted = 0, length = std::min<int64_t>(64, kept);;
         length = std::min(kept, 8 * length)) {
      std::nth_element(order + sorted, order + length - 1, order + vocab, before);
      std::sort(order + sorted, order + length, before);
      sorted = length;
      double mass = 0;
      int64_t count = 0;
      while (count < length && (count == 0 || mass < row.top_p * total)) {
        mass += probability[order[count++]];
      }
      if (mass >= row.top_p * total || length == kept) {
        kept = std::min(kept, count);
        break;
      }
    }
  }
  if (kept < vocab) {
    std::nth_element(order, order + kept - 1, order + vocab, before);
  }
  for (int64_t i = kept; i < vocab; ++i) z[order[i]] = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < vocab; ++i) {
    if (probability[i] < row.min_p) z[i] = -std::numeric_limits<float>::infinity();
  }
}

inline void SampleRow(const float* logits, int64_t vocab, const SamplingRow& row,
                      const SampleScratch& scratch, int32_t* token, float* log_prob) {
  const float inverse_temperature = row.temperature > 0 ? 1.0f / row.temperature : 1.0f;
  const LogSoftmax stats = ReduceLogits(logits, vocab, inverse_temperature);
  *token = -1;
  *log_prob = stats.LogProb(logits[0]);
  if (!stats.finite) return;

  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const int64_t padded = (vocab + kNoiseIds - 1) / kNoiseIds * kNoiseIds;
  for (int64_t i = 0; i < padded; i += 16) {
    const F32x16 z = i < vocab ? LoadRow16(logits, i, vocab, kNever) : Set16(kNever);
    Store16(z * Set16(inverse_temperature), scratch.z + i);
  }
  LaneArgmax argmax;
  if (row.temperature == 0) {
    for (int64_t i = 0; i < vocab; i += 16) argmax.Add(Load16(scratch.z + i), i);
  } else {
    if (row.top_k > 0 || row.top_p < 1 || row.min_p > 0) Cut(row, vocab, stats.max, scratch);
    const PhiloxKey key = NoiseKey(row.key);
    const PhiloxCounter counter = NoiseCounter(row.key, 0);
    float noise[kNoiseIds];
    for (int64_t i = 0; i < vocab; i += kNoiseIds) {
      GumbelNoise(key, counter, i, noise);
      for (int64_t j = 0; j < kNoiseIds; j += 16) {
        argmax.Add(Load16(scratch.z + i + j) + Load16(noise + j), i + j);
      }
    }
  }
  *token = argmax.Best();
  *log_prob = stats.LogProb(logits[*token]);
}

void SampleTokensImpl(const ExecContext& ctx, ConstTensor logits, std::span<const SamplingRow> rows,
                      int32_t* tokens, float* log_probs) {
  const int64_t vocab = logits.dim(1);
  const int64_t padded = (vocab + kNoiseIds - 1) / kNoiseIds * kNoiseIds;
  Workspace::Scope scope(ctx.workspace);
  const int threads = Threads(ctx);
  float* const z = scope.Array<float>(static_cast<size_t>(padded * threads));
  float* const probability = scope.Array<float>(static_cast<size_t>(padded * threads));
  int32_t* const order = scope.Array<int32_t>(static_cast<size_t>(padded * threads));
  ParallelRanges(ctx, logits.dim(0), std::max<int64_t>(1, 8192 / vocab),
                 [&](int64_t begin, int64_t end, int thread) {
                   const SampleScratch scratch{z + thread * padded, probability + thread * padded,
                                               order + thread * padded};
                   for (int64_t r = begin; r < end; ++r) {
                     SampleRow(logits.as<float>() + r * vocab, vocab, rows[r], scratch, tokens + r,
                               log_probs + r);
                   }
                 });
}

}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfstep::cpu {

HWY_EXPORT(SampleTokensImpl);

void SampleTokens(const ExecContext& ctx, ConstTensor logits, std::span<const SamplingRow> rows,
                  Tensor tokens, Tensor log_probs) {
  if (rows.empty()) return;
  HWY_DYNAMIC_DISPATCH(SampleTokensImpl)
  (ctx, logits, rows, tokens.as<int32_t>(), log_probs.as<float>());
}

}  // namespace halfstep::cpu
#endif  // HWY_ONCE
