// SPDX-License-Identifier: Apache-2.0
// How losses of tokens become one number. The weight of a token depends on counts over the whole
// optimizer step, never over a micro-batch, so the split into micro-batches does not change the
// loss.
#pragma once

#include <cstdint>

namespace halfstep {

enum class Aggregation {
  kTokenMean,                // sum over tokens / tokens
  kSequenceMeanTokenMean,    // mean over sequences of the mean over their tokens
  kSequenceMeanTokenSum,     // mean over sequences of the sum over their tokens
  kSequenceMeanTokenSumNorm  // the same divided by a constant length
};

// "token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum",
// "sequence_mean_token_sum_norm".
const char* Name(Aggregation aggregation);

// Counted over every sequence of the optimizer step that enters the loss, before its first
// backward.
struct LossDenominators {
  int64_t tokens = 0;
  int64_t sequences = 0;
  int64_t constant_length = 1;  // of kSequenceMeanTokenSumNorm
};

// The factor of each token's loss in a sequence of `sequence_tokens` (above 0) response tokens.
double TokenWeight(Aggregation aggregation, const LossDenominators& denominators,
                   int64_t sequence_tokens);

}  // namespace halfstep
