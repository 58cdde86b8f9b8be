// SPDX-License-Identifier: Apache-2.0
// Choosing the next token by Gumbel-max with counter-based randomness.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/exec_context.h"
#include "kernels/philox.h"
#include "kernels/tensor.h"

namespace halfstep {

// Why a token is sampled; part of the random key, so that training and evaluation never share
// noise.
enum class SamplingDomain : uint8_t { kTrain = 0, kEval = 1, kUser = 2 };

// Everything the noise of one token depends on.
struct SamplingKey {
  uint64_t seed = 0;
  SamplingDomain domain = SamplingDomain::kTrain;
  uint64_t group = 0;     // ordinal of the prompt within the run
  uint32_t index = 0;     // sample within the group, below 2^24
  uint32_t position = 0;  // of the token within the response
};

// The uniform number of token id v is word v % 4 of Philox4x32(NoiseCounter(key, v / 4),
// NoiseKey(key)).
constexpr PhiloxKey NoiseKey(const SamplingKey& key) {
  // An odd multiplier, so that no two high words of `group` share a key.
  return {
      {static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32) ^
                                            static_cast<uint32_t>(key.group >> 32) * 0x9E3779B1u}};
}
constexpr PhiloxCounter NoiseCounter(const SamplingKey& key, uint32_t quarter_id) {
  return {{quarter_id, key.position, key.index | static_cast<uint32_t>(key.domain) << 24,
           static_cast<uint32_t>(key.group)}};
}

struct SamplingRow {
  SamplingKey key;
  float temperature = 1;  // 0: greedy; the log-prob is then reported at temperature 1
  int32_t top_k = 0;      // 0: off
  float top_p = 1;  // 1: off; smallest set of the most probable tokens whose mass reaches top_p
  float min_p = 0;  // 0: off; relative to the most probable token
};

// logits: FP32 [rows, vocab]; rows.size() = rows; tokens: int32 [rows]; log_probs: FP32 [rows].
// tokens[r] = argmax over the kept ids of logits / temperature - log(-log(u)), u from Philox of the
// key and the id; the lowest id wins ties. Each cut looks at the whole distribution at the row's
// temperature, and an id is kept if every cut keeps it. A cut keeps at least one token; equal
// logits at the edge of a cut are kept or dropped by ascending id. A row with a non-finite logit
// gives token -1 and log-prob NaN.
// `rows` is host memory on every device. CUDA copies it on the stream: when it is pageable it may
// be gone as soon as the call returns, page-locked it stays until the stream has come that far.
void SampleTokens(const ExecContext& ctx, ConstTensor logits, std::span<const SamplingRow> rows,
                  Tensor tokens, Tensor log_probs);

}  // namespace halfstep
