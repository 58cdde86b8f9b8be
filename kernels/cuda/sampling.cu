// SPDX-License-Identifier: Apache-2.0
// A block per row. Without cuts one pass gives log-softmax and the largest of z + Gumbel noise, at
// some 90 instructions per logit; each of top-k and top-p adds three passes over the row, which is
// in the cache by then, and a last one then looks at what was kept. Nothing of the size of the
// vocabulary is stored.
#include "kernels/ops/sampling.h"

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/log_softmax.h"
#include "kernels/cuda/row_access.h"
#include "kernels/cuda/select.h"
#include "kernels/workspace.h"

namespace halfstep::cuda {
namespace {

constexpr size_t kSelectOffset = kLogSoftmaxBytes;
constexpr size_t kBestOffset = kSelectOffset + kSelectBytes;
constexpr size_t kSharedBytes = kBestOffset + kWarpSize * (sizeof(float) + sizeof(int32_t));

struct Row {
  Pointer<const float> logits;
  int vocab;
  SamplingRow how;
};

// The largest score so far; the lowest id wins ties.
struct Best {
  float score = -BitsToFloat(0x7f800000u);
  int32_t id = INT32_MAX;

  HALFSTEP_DEVICE void Add(float other_score, int32_t other_id) {
    if (other_score > score || (other_score == score && other_id < id)) {
      score = other_score;
      id = other_id;
    }
  }
  // Over the lanes of a warp, the same in all of them.
  HALFSTEP_DEVICE void MergeWarp() {
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
      const float other_score = ShuffleXor(score, mask);
      Add(other_score, ShuffleXor(id, mask));
    }
  }
  HALFSTEP_DEVICE void MergeBlock() {
    const auto scores = SharedMemory<float>(kBestOffset, kWarpSize);
    const auto ids = SharedMemory<int32_t>(kBestOffset + kWarpSize * sizeof(float), kWarpSize);
    MergeWarp();
    if (Lane() == 0) {
      scores[Warp()] = score;
      ids[Warp()] = id;
    }
    SyncBlock();
    if (Lane() < BlockThreads() / kWarpSize) {
      score = scores[Lane()];
      id = ids[Lane()];
    }
    MergeWarp();
  }
};

// z + Gumbel noise of the ids of a pack of which bit j of `kept` says whether it takes part.
HALFSTEP_DEVICE void AddNoisy(const SamplingKey& key, int first, const float (&z)[kRowPack],
                              unsigned kept, Best& best) {
  const auto words = Philox4x32(NoiseCounter(key, static_cast<uint32_t>(first) / 4), NoiseKey(key));
#pragma unroll
  for (int j = 0; j < kRowPack; ++j) {
    if (kept >> j & 1) best.Add(z[j] - Log(-Log(UniformFromBits(words[j]))), first + j);
  }
}

// Unsigned integers in the order of the logits; equal logits, 0 and -0 among them, are equal.
HALFSTEP_DEVICE uint32_t OrderedBits(float logit) {
  const uint32_t bits = FloatToBits(logit + 0.0f);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}
HALFSTEP_DEVICE float FromOrderedBits(uint32_t key) {
  return BitsToFloat(key >> 31 != 0 ? key & 0x7fffffffu : ~key);
}

// Where a cut ends in the order of falling logits and, among equal ones, of rising ids.
struct Edge {
  uint32_t key = 0;  // OrderedBits of the last logit that is kept
  int end_id = 0;    // ids with that logit are kept below this one

  HALFSTEP_DEVICE bool Keeps(uint32_t other, int id) const {
    return other > key || (other == key && id < end_id);
  }
  HALFSTEP_DEVICE bool Before(const Edge& other) const {
    return key > other.key || (key == other.key && end_id < other.end_id);
  }
};

// A probability relative to the largest one, in units of 2^-44: the sum of all is exact.
constexpr float kMassUnit = 0x1p44f;
constexpr int64_t kMostIds = int64_t{1} << 20;  // else the sum may exceed 64 bits

// The edge of top-p if `by_mass`, else that of top-k.
template <bool aligned>
HALFSTEP_DEVICE Edge FindEdge(const Row& row, const LogSoftmax& stats, bool by_mass) {
  const auto weight = [&](float logit) -> uint64_t {
    if (!by_mass) return 1;
    return static_cast<uint64_t>(Exp(logit * stats.inverse_temperature - stats.max) * kMassUnit);
  };
  const auto target = [&](uint64_t total) -> uint64_t {
    if (!by_mass) {
      const auto k = static_cast<uint64_t>(row.how.top_k);
      return k < total ? k : total;
    }
    const double mass = static_cast<double>(row.how.top_p) * static_cast<double>(total);
    if (!(mass > 1)) return 1;
    const auto floor = static_cast<uint64_t>(mass);
    const uint64_t reached = static_cast<double>(floor) < mass ? floor + 1 : floor;
    return reached < total ? reached : total;
  };
  const SelectMemory memory = SelectMemoryAt(kSelectOffset);
  const Selected last = SelectKey(
      memory,
      [&](const auto& add) {
        ForEachPack<aligned>(row.logits, row.vocab, [&](int, const float(&v)[kRowPack], int count) {
#pragma unroll
          for (int j = 0; j < kRowPack; ++j) {
            if (j < count) add(OrderedBits(v[j]), weight(v[j]));
          }
        });
      },
      target);
  const uint64_t each = weight(FromOrderedBits(last.key));
  const uint64_t kept = (last.wanted + each - 1) / each;
  if (kept * each >= last.weight) return {last.key, row.vocab};
  const Selected last_id = SelectKey(
      memory,
      [&](const auto& add) {
        ForEachPack<aligned>(row.logits, row.vocab,
                             [&](int i, const float(&v)[kRowPack], int count) {
#pragma unroll
                               for (int j = 0; j < kRowPack; ++j) {
                                 if (j < count && OrderedBits(v[j]) == last.key) {
                                   add(~static_cast<uint32_t>(i + j), 1);
                                 }
                               }
                             });
      },
      [&](uint64_t) { return kept; });
  return {last.key, static_cast<int>(~last_id.key) + 1};
}

// The best of the ids that every cut keeps.
template <bool aligned>
HALFSTEP_DEVICE Best BestOfKept(const Row& row, const LogSoftmax& stats) {
  Edge edge{0, row.vocab};
#pragma unroll 1
  for (int cut = 0; cut < 2; ++cut) {
    const bool by_mass = cut == 1;
    if (by_mass ? row.how.top_p >= 1 : row.how.top_k == 0) continue;
    const Edge found = FindEdge<aligned>(row, stats, by_mass);
    if (found.Before(edge)) edge = found;
  }
  Best best;
  ForEachPack<aligned>(row.logits, row.vocab, [&](int i, const float(&v)[kRowPack], int count) {
    float z[kRowPack];
    unsigned kept = 0;
#pragma unroll
    for (int j = 0; j < kRowPack; ++j) {
      z[j] = v[j] * stats.inverse_temperature;
      if (j < count && edge.Keeps(OrderedBits(v[j]), i + j) &&
          Exp(z[j] - stats.max) >= row.how.min_p) {
        kept |= 1u << j;
      }
    }
    if (kept != 0) AddNoisy(row.how.key, i, z, kept, best);
  });
  return best;
}

HALFSTEP_HOST_DEVICE bool HasCut(const SamplingRow& row) {
  return row.temperature > 0 && (row.top_k > 0 || row.top_p < 1 || row.min_p > 0);
}

// With `cuts`, rows may have one; without, the kernel has fewer registers and the same results.
template <bool aligned, bool cuts>
HALFSTEP_KERNEL void SampleRows(int vocab, Pointer<const float> logits,
                                Pointer<const SamplingRow> rows, Pointer<int32_t> tokens,
                                Pointer<float> log_probs) {
  const Row row{logits + int64_t{BlockX()} * vocab, vocab, rows[BlockX()]};
  const bool greedy = !(row.how.temperature > 0);
  const bool cut = cuts && HasCut(row.how);
  const float inverse_temperature = greedy ? 1.0f : 1.0f / row.how.temperature;
  Best best;
  const auto look = [&](int i, const float(&z)[kRowPack], int count) {
    if (greedy) {
#pragma unroll
      for (int j = 0; j < kRowPack; ++j) {
        if (j < count) best.Add(z[j], i + j);
      }
    } else if (!cut) {
      AddNoisy(row.how.key, i, z, (1u << count) - 1, best);
    }
  };
  const LogSoftmax stats = ReduceLogits<aligned>(row.logits, vocab, inverse_temperature, look);
  if constexpr (cuts) {
    if (cut && stats.finite) best = BestOfKept<aligned>(row, stats);
  }
  best.MergeBlock();
  if (ThreadIndex() == 0) {
    tokens[BlockX()] = stats.finite ? best.id : -1;
    log_probs[BlockX()] = stats.LogProb(row.logits[stats.finite ? best.id : 0]);
  }
}

template <bool cuts>
void SampleOf(const ExecContext& ctx, ConstTensor logits, Pointer<const SamplingRow> rows,
              Pointer<int32_t> tokens, Pointer<float> log_probs) {
  const int64_t vocab = logits.dim(1);
  const auto from = PointerTo<const float>(logits);
  Launch(ctx, {"SampleTokens", logits.dim(0), 1, RowThreads(vocab), kSharedBytes},
         RowsAreAligned(from, vocab) ? SampleRows<true, cuts> : SampleRows<false, cuts>,
         static_cast<int>(vocab), from, rows, tokens, log_probs);
}

}  // namespace

void SampleTokens(const ExecContext& ctx, ConstTensor logits, std::span<const SamplingRow> rows,
                  Tensor tokens, Tensor log_probs) {
  static_assert(std::is_trivially_copyable_v<SamplingRow>);
  if (rows.empty()) return;
  HALFSTEP_CHECK_LT(logits.dim(1), kMostIds);
  Workspace::Scope scope(ctx.workspace);
  auto* const copied = scope.Array<SamplingRow>(rows.size());
  CopyBytes(ctx.stream->native(), copied, rows.data(), rows.size_bytes());
  const Pointer<const SamplingRow> on_device(copied, logits.dim(0));
  const auto sample =
      std::any_of(rows.begin(), rows.end(), HasCut) ? SampleOf<true> : SampleOf<false>;
  sample(ctx, logits, on_device, PointerTo<int32_t>(tokens), PointerTo<float>(log_probs));
}

}  // namespace halfstep::cuda
